"""A manifest of the sparse checkpoint: some layers read and hashed as `shoal manifest make` does it, the rest by name.

A whole pass would read 641 GiB of zeros. Experts and tensors that were not read stand in the manifest by a digest of
their names, so that all pieces differ and none of these can ever be fetched: no bytes have that digest.
Knows checkpoints; knows no sources.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from shoal.experts.digest import digest_bytes, digest_config
from shoal.experts.manifest import Manifest, TrunkLeaf
from shoal.experts.manifest_maker import Making, ModelFiles, hash_expert, trunk_names
from shoal.experts.parallel import mapped
from shoal.experts.shard import format_of
from shoal.protocol.ids import ExpertId, LayerId

WARM_BYTES = 64 * 1024 * 1024
NUM_WARM = 8


@dataclass(frozen=True, slots=True)
class Hashed:
    """A manifest and what making it took."""

    manifest: Manifest
    num_experts: int
    """That were read and hashed."""
    size_bytes: int
    taken_s: float
    jobs: int

    @property
    def bytes_per_s(self) -> float:
        return self.size_bytes / self.taken_s


def hash_layers(directory: Path, layers: Sequence[LayerId], jobs: int) -> Hashed:
    """Read and hash all experts of some layers; put everything else in by name."""
    making, begun_s = Making(is_probed=False, num_jobs=jobs), time.perf_counter()
    files = ModelFiles.open(directory)
    with files.checkpoint:
        spec = files.spec
        weight_format = format_of(files.checkpoint, spec, spec.moe_layers[0], ExpertId(0))
        ids = [(layer, ExpertId(expert)) for layer in layers for expert in range(spec.router.num_experts)]
        hashed = list(mapped(lambda each: hash_expert(files, *each, weight_format, making), ids, jobs))
        taken_s = time.perf_counter() - begun_s
        experts = {
            layer: tuple(_by_name(f"expert {layer}:{expert}") for expert in range(spec.router.num_experts))
            for layer in spec.moe_layers
        }
        for number, layer in enumerate(layers):
            begin = number * spec.router.num_experts
            experts[layer] = tuple(each.digest for each in hashed[begin : begin + spec.router.num_experts])
        manifest = Manifest(
            spec.model_type, weight_format, digest_config(files.config), _trunk_by_name(files), experts, {}
        )
    return Hashed(manifest, len(ids), sum(each.size_bytes for each in hashed), taken_s, jobs)


def hash_rate() -> float:
    """Bytes per second of BLAKE3 alone, one thread, from memory that was just written."""
    data, times = bytes(WARM_BYTES), []
    for _ in range(NUM_WARM):
        begun_s = time.perf_counter()
        blake3(data, max_threads=1).digest()
        times.append(time.perf_counter() - begun_s)
    return WARM_BYTES / min(times)


def _trunk_by_name(files: ModelFiles) -> dict[str, TrunkLeaf]:
    entries = {name: files.checkpoint.entry(name) for name in trunk_names(files)}
    return {name: TrunkLeaf(entry.dtype, entry.shape, _by_name(name)) for name, entry in entries.items()}


def _by_name(name: str) -> bytes:
    return digest_bytes(f"not read: {name}".encode())
