"""Where a manifest comes from: shipped beside the weights, kept in a cache, or made by reading every tensor once.

Knows directories and caches; what a manifest is and when weights fit it is `manifest.py`'s business.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from blake3 import blake3

from shoal.experts import probe
from shoal.experts.checkpoint import INDEX_FILE, Checkpoint
from shoal.experts.digest import digest_config, digest_tensors
from shoal.experts.family import CONFIG_FILE, ModelSpec, model_spec, read_config
from shoal.experts.manifest import FORMAT_VERSION, MANIFEST_FILE, Manifest, TrunkLeaf, load_manifest, write_manifest
from shoal.experts.parallel import mapped
from shoal.experts.reference_backend import ReferenceBackend
from shoal.experts.shard import ExpertShard, expert_tensor_names, format_of, read_shard, spec_in
from shoal.protocol.errors import CheckpointError, InvalidRequest, ModelNotFound
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import Rounding, WeightFormat

Progress = Callable[[int, int], None]
"""Called as work goes on with (bytes done, bytes in all)."""

CACHE_SUFFIX = ".manifest.json"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """An opened model directory: what every way to a manifest needs."""

    directory: Path
    config: Mapping[str, object]
    spec: ModelSpec
    checkpoint: Checkpoint

    @classmethod
    def open(cls, directory: Path) -> "ModelFiles":
        """Open a directory; its `spec` has the MTP layers that are really there.

        Raises:
            ModelNotFound, InvalidRequest, CheckpointError: as `read_config`, `model_spec`, `Checkpoint.open`.
        """
        config = read_config(directory)
        spec = model_spec(config)
        checkpoint = Checkpoint.open(directory)
        try:
            return cls(directory, config, spec_in(checkpoint, spec), checkpoint)
        except BaseException:
            checkpoint.close()
            raise


def open_manifest(directory: Path, cache_dir: Path) -> Manifest:
    """The manifest of a model directory: as shipped in it, else from the cache, else made (and cached).

    A cached manifest is found by the bytes of config and index and by every shard's name, size, times and header; after
    any change another is made.

    Raises:
        ModelNotFound, InvalidRequest: as `ModelFiles.open`; InvalidRequest also where the cache cannot be written.
        CheckpointError: files are damaged, or the shipped manifest is of another model.
    """
    files = ModelFiles.open(directory)
    with files.checkpoint:
        return manifest_of(files, cache_dir)


@dataclass(frozen=True, slots=True)
class Making:
    """How a manifest is made."""

    is_probed: bool = True
    """Known-answer probes too: clients ask holders for them (`probe.py`). They take longer than the hashing."""
    num_jobs: int = 1
    """Threads, each with one expert in memory."""


DEFAULT_MAKING = Making()


def make_manifest(directory: Path, progress: Progress | None = None, making: Making = DEFAULT_MAKING) -> Manifest:
    """Read a model directory, every tensor once, and hash it. Memory: one expert, or trunk tensor, per job.

    Raises:
        As `open_manifest`; CheckpointError also where a weight is not finite, if probes are made.
    """
    files = ModelFiles.open(directory)
    with files.checkpoint:
        return _make(files, progress, making)


def manifest_of(files: ModelFiles, cache_dir: Path, progress: Progress | None = None) -> Manifest:
    """As `open_manifest`, of files that are open already; `progress` is called only if a manifest has to be made."""
    shipped = files.directory / MANIFEST_FILE
    if shipped.is_file():
        manifest = load_manifest(shipped)
        check_manifest(manifest, files)
        return manifest
    cached = cache_dir / (_fingerprint(files).hex() + CACHE_SUFFIX)
    try:
        return load_manifest(cached)
    except (ModelNotFound, CheckpointError):  # not there yet, or damaged: the cache is only a copy
        manifest = _make(files, progress)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        write_manifest(manifest, cached)
    except OSError as error:
        raise InvalidRequest(f"the manifest cache {cache_dir} cannot be written: {error.strerror}") from error
    return manifest


def check_manifest(manifest: Manifest, files: ModelFiles) -> None:
    """Compare a manifest with what a directory says it holds, without reading weights.

    Raises:
        CheckpointError: another config, other tensors or other experts.
    """
    if manifest.config_digest != digest_config(files.config):
        raise CheckpointError(CONFIG_FILE, None, f"not the config that {MANIFEST_FILE} was made of")
    num_experts = files.spec.router.num_experts
    if {layer: len(digests) for layer, digests in manifest.experts.items()} != dict.fromkeys(
        files.spec.moe_layers, num_experts
    ):
        raise CheckpointError(MANIFEST_FILE, None, "other layers or experts than the checkpoint has")
    odd = sorted(files.checkpoint.names - _expert_names(files) ^ manifest.trunk.keys())
    if odd:
        where = "not in the manifest" if files.checkpoint.has(odd[0]) else "in the manifest only"
        raise CheckpointError(MANIFEST_FILE, odd[0], where)


def _make(files: ModelFiles, progress: Progress | None, making: Making = DEFAULT_MAKING) -> Manifest:
    meter = Meter(files, progress)
    weight_format = format_of(files.checkpoint, files.spec, files.spec.moe_layers[0], ExpertId(0))
    ids = [(layer, ExpertId(i)) for layer in files.spec.moe_layers for i in range(files.spec.router.num_experts)]
    experts: dict[LayerId, list[bytes]] = {layer: [] for layer in files.spec.moe_layers}
    probes: dict[LayerId, list[bytes]] = {layer: [] for layer in files.spec.moe_layers if making.is_probed}

    def hash_one(place: tuple[LayerId, ExpertId]) -> Hashed:
        return hash_expert(files, *place, weight_format, making)

    for (layer, _), hashed in zip(ids, mapped(hash_one, ids, making.num_jobs), strict=True):
        experts[layer].append(hashed.digest)
        if making.is_probed:
            probes[layer].append(hashed.probe)
        meter.advance(hashed.size_bytes)
    return Manifest(
        model_type=files.spec.model_type,
        weight_format=weight_format,
        config_digest=digest_config(files.config),
        trunk=dict(_trunk_leaves(files, meter, making.num_jobs)),
        experts={layer: tuple(digests) for layer, digests in experts.items()},
        probes={layer: tuple(answers) for layer, answers in probes.items()},
    )


class Hashed(NamedTuple):
    """What was learnt of an expert; `probe` is empty if none was asked for, `size_bytes` is what was read."""

    digest: bytes
    probe: bytes
    size_bytes: int


def hash_expert(
    files: ModelFiles, layer: LayerId, expert: ExpertId, weight_format: WeightFormat, making: Making
) -> Hashed:
    """Read one expert and hash it.

    Raises:
        InvalidRequest: no such expert. CheckpointError: damaged, or in another format.
    """
    shard = read_shard(files.checkpoint, files.spec, layer, expert)
    if shard.format is not weight_format:
        file = shard.tensors[0].file
        raise CheckpointError(file, shard.name, f"{shard.format.name} in a model of {weight_format.name}")
    digest = digest_tensors(shard.tensors, is_alone=making.num_jobs <= 1)
    answer = _probe(ReferenceBackend(), files.spec, layer, expert, shard) if making.is_probed else b""
    return Hashed(digest, answer, shard.size_bytes)


def _trunk_leaves(files: ModelFiles, meter: "Meter", num_jobs: int) -> Iterator[tuple[str, TrunkLeaf]]:
    checkpoint = files.checkpoint
    names = trunk_names(files)

    def hash_one(name: str) -> tuple[TrunkLeaf, int]:
        tensor = checkpoint.read(name)
        digest = digest_tensors([tensor], is_alone=num_jobs <= 1)
        return TrunkLeaf(tensor.dtype, tensor.shape, digest), tensor.data.nbytes

    for name, (leaf, size_bytes) in zip(names, mapped(hash_one, names, num_jobs), strict=True):
        yield name, leaf
        meter.advance(size_bytes)


def trunk_names(files: ModelFiles) -> list[str]:
    """Names of the tensors outside the routed experts, in the order of the files."""
    checkpoint, names = files.checkpoint, files.checkpoint.names - _expert_names(files)
    return sorted(names, key=lambda name: (checkpoint.file_of(name), checkpoint.entry(name).begin, name))


def _expert_names(files: ModelFiles) -> set[str]:
    names: set[str] = set()
    for layer in files.spec.moe_layers:
        for expert in range(files.spec.router.num_experts):
            names.update(expert_tensor_names(files.checkpoint, files.spec, layer, ExpertId(expert)))
    return names


def _probe(backend: ReferenceBackend, spec: ModelSpec, layer: LayerId, expert: ExpertId, shard: ExpertShard) -> bytes:
    """The encoded summary of an expert's answer to its probe, in rounding 0."""
    packed = backend.pack(spec.expert, shard.weights())
    x, one_row = probe.probe_input(layer, expert, spec.expert.hidden), torch.zeros(1, dtype=torch.int64)
    answer = backend.run([packed], x, one_row, [0, 1], torch.ones(1), Rounding.FP32)
    return probe.encode_summary(probe.summarize(layer, expert, answer[0]))


def _fingerprint(files: ModelFiles) -> bytes:
    """What a cached manifest is found by; 32 bytes. Reads all headers.

    The time of the last change of the inode (ctime) is part of it: a copy that restores modification times keeps those.
    """
    hasher = blake3(b"shoal manifest cache %d" % FORMAT_VERSION)
    for name in (CONFIG_FILE, INDEX_FILE):
        path = files.directory / name
        hasher.update(blake3(path.read_bytes() if path.is_file() else b"").digest())
    for file in files.checkpoint.files:
        shard = files.checkpoint.open_file(file)
        status = os.fstat(shard.descriptor)
        line = f"{file}\n{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n"
        hasher.update(blake3(line.encode()).digest() + blake3(shard.header).digest())
    return hasher.digest()


class Meter:
    """Counts bytes for a progress callback."""

    def __init__(self, files: ModelFiles, progress: Progress | None) -> None:
        self._progress = progress
        self._done = 0
        self._total = 0
        if progress:
            self._total = sum(files.checkpoint.entry(name).size_bytes for name in files.checkpoint.names)

    def advance(self, size_bytes: int) -> None:
        self._done += size_bytes
        if self._progress:
            self._progress(self._done, self._total)
