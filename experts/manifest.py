"""What a model is, as hashes: the root that peers name it by, and the digests that every weight must have before use.

One digest per trunk tensor, one per expert (all its tensors), one of the config; a Merkle root over them. Whoever knows
the root can check any weight from any source. Stored as `shoal.manifest.json`. Knows no directories and no caches
(`manifest_maker.py`), no kernels.

The root's leaves, in this order: `model` (format version, model type, weight format, config), `trunk/<name>
<dtype><shape>` by name, `expert/<layer>/<expert>` by number. Probes are not under the root: they are fp32 sums, which
differ in the last bits between machines, and a model's identity must not; a hash of their own guards them against
damage.
"""

import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from blake3 import blake3

from shoal.experts import probe
from shoal.experts.checkpoint import StoredTensor
from shoal.experts.digest import DIGEST_BYTES, digest_tensors, leaf_hash, merkle_root
from shoal.experts.family import MAX_EXPERTS
from shoal.experts.safetensors_header import ITEM_BYTES, MAX_RANK, MAX_TENSOR_BYTES, check_name, parse_object
from shoal.protocol import limits
from shoal.protocol.errors import CheckpointError, InvalidRequest, ModelNotFound
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import WeightFormat

MANIFEST_FILE = "shoal.manifest.json"

FORMAT_VERSION = 1
"""Version of the file and of everything that the root depends on."""

MAX_MANIFEST_BYTES = 32 * 1024 * 1024
"""A manifest; DeepSeek-V3's has 2.3 MB, Kimi K2's 3.3 MB."""

_LAYER = re.compile(r"0|[1-9][0-9]{0,5}")
_FORMAT_WORDS = {weight_format.name.lower(): weight_format for weight_format in WeightFormat}


@dataclass(frozen=True, slots=True)
class TrunkLeaf:
    """What a tensor outside the routed experts must be."""

    dtype: str
    shape: tuple[int, ...]
    digest: bytes

    def hash(self, name: str) -> bytes:
        """The leaf under the root; 32 bytes. Dtype and shape are part of the key, so that they cannot be misstated."""
        return leaf_hash(f"trunk/{name} {self.dtype}{list(self.shape)}".encode(), self.digest)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The hashes of a model; `root` is derived from the rest."""

    model_type: str
    weight_format: WeightFormat
    config_digest: bytes
    trunk: Mapping[str, TrunkLeaf]
    experts: Mapping[LayerId, tuple[bytes, ...]]
    """Digest of expert 0, 1, … of each MoE layer."""
    probes: Mapping[LayerId, tuple[bytes, ...]]
    """Encoded summaries of the probes' answers; empty if none were computed."""
    root: bytes = field(init=False)
    """Merkle root, 32 bytes: the model's identity on the wire."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", merkle_root(self.leaves()))

    @property
    def num_experts(self) -> int:
        """Experts over all layers."""
        return sum(len(digests) for digests in self.experts.values())

    def expert_digest(self, layer: LayerId, expert: ExpertId) -> bytes:
        """What an expert must hash to; 32 bytes.

        Raises:
            InvalidRequest: the manifest knows no such expert.
        """
        digests = self.experts.get(layer, ())
        if not 0 <= expert < len(digests):
            raise InvalidRequest(f"the manifest has no expert {expert} in layer {layer}")
        return digests[expert]

    def leaves(self) -> list[bytes]:
        """What the root is over, in order."""
        model = f"{FORMAT_VERSION} {self.model_type} {self.weight_format.name} ".encode() + self.config_digest
        leaves = [leaf_hash(b"model", blake3(model).digest())]
        leaves += [self.trunk[name].hash(name) for name in sorted(self.trunk)]
        for layer in sorted(self.experts):
            for expert, digest in enumerate(self.experts[layer]):
                leaves.append(leaf_hash(expert_key(layer, expert), digest))
        return leaves


def expert_key(layer: LayerId, expert: int) -> bytes:
    """The key of an expert's leaf."""
    return f"expert/{layer}/{expert}".encode()


def verify_expert(manifest: Manifest, layer: LayerId, expert: ExpertId, tensors: Sequence[StoredTensor]) -> None:
    """Check an expert's tensors, in the order gate, up, down, each weight before its scales.

    Raises:
        InvalidRequest: the manifest knows no such expert. CheckpointError: they are not what it says.
    """
    if digest_tensors(tensors) != manifest.expert_digest(layer, expert):
        first = tensors[0] if tensors else None
        files = " and ".join(sorted({tensor.file for tensor in tensors})) or "nothing"
        prefix = first.name.rsplit(".", 2)[0] + ".*" if first else None
        raise CheckpointError(files, prefix, "not the bytes, names or shapes of the manifest")


def verify_trunk_tensor(manifest: Manifest, tensor: StoredTensor) -> None:
    """Check a tensor outside the routed experts.

    Raises:
        CheckpointError: the manifest does not know it, or it is not what the manifest says.
    """
    leaf = manifest.trunk.get(tensor.name)
    if leaf is None:
        raise CheckpointError(tensor.file, tensor.name, "not in the manifest")
    if (tensor.dtype, tensor.shape) != (leaf.dtype, leaf.shape):
        stated = f"{leaf.dtype}{list(leaf.shape)}"
        raise CheckpointError(
            tensor.file, tensor.name, f"{tensor.dtype}{list(tensor.shape)}, the manifest has {stated}"
        )
    if digest_tensors([tensor]) != leaf.digest:
        raise CheckpointError(tensor.file, tensor.name, "not the bytes of the manifest")


def check_probe(manifest: Manifest, layer: LayerId, expert: ExpertId, partial: torch.Tensor) -> bool:
    """Whether a holder's answer to `probe.probe_input` is right. partial: f32[H], with topk_weight 1.

    Raises:
        InvalidRequest: the manifest has no probe of this expert.
    """
    summaries = manifest.probes.get(layer, ())
    if not 0 <= expert < len(summaries):
        raise InvalidRequest(f"the manifest has no probe of expert {expert} in layer {layer}")
    return probe.agrees(probe.decode_summary(summaries[expert]), layer, expert, partial)


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write the file; a reader sees the old one or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.new")
    try:
        temporary.write_text(encode_manifest(manifest), encoding="ascii")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def encode_manifest(manifest: Manifest) -> str:
    """The manifest as JSON: sorted, one line; digests and probes of a layer's experts as one string of hex."""
    value = {
        "shoal_manifest": FORMAT_VERSION,
        "model_type": manifest.model_type,
        "weight_format": manifest.weight_format.name.lower(),
        "config": manifest.config_digest.hex(),
        "trunk": {
            name: [leaf.dtype, list(leaf.shape), leaf.digest.hex()] for name, leaf in sorted(manifest.trunk.items())
        },
        "experts": {str(layer): b"".join(items).hex() for layer, items in sorted(manifest.experts.items())},
        "probes": {str(layer): b"".join(items).hex() for layer, items in sorted(manifest.probes.items())},
        "probes_blake3": _digest_probes(manifest.probes).hex(),
        "root": manifest.root.hex(),
    }
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True) + "\n"


def load_manifest(path: Path) -> Manifest:
    """Read a manifest file, strictly, and recompute its root.

    Raises:
        ModelNotFound: no such file. CheckpointError: not a manifest of this version, or its root is another.
    """
    if not path.is_file():
        raise ModelNotFound(f"no manifest: {path}")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise CheckpointError(path.name, None, f"more than {MAX_MANIFEST_BYTES} bytes")
    return decode_manifest(path.read_bytes(), path.name)


def decode_manifest(raw: bytes, file: str = MANIFEST_FILE) -> Manifest:
    """The reverse of `encode_manifest`.

    Raises:
        CheckpointError: not a manifest of this version, or its root or its probes' hash is another.
    """
    reader = _Reader(file, parse_object(raw, file))
    manifest = Manifest(
        model_type=reader.text("model_type"),
        weight_format=reader.weight_format(),
        config_digest=reader.digest("config"),
        trunk=reader.trunk(),
        experts=reader.layers("experts", DIGEST_BYTES),
        probes=reader.layers("probes", probe.SUMMARY_BYTES),
    )
    if manifest.root != reader.digest("root"):
        raise CheckpointError(file, None, f"its root is {manifest.root.hex()}, not the one it states")
    if _digest_probes(manifest.probes) != reader.digest("probes_blake3"):
        raise CheckpointError(file, None, "its probes do not have the hash it states")
    if manifest.probes and {k: len(v) for k, v in manifest.probes.items()} != {
        k: len(v) for k, v in manifest.experts.items()
    }:
        raise CheckpointError(file, None, "probes for other experts than it has")
    return manifest


def _digest_probes(probes: Mapping[LayerId, tuple[bytes, ...]]) -> bytes:
    hasher = blake3()
    for layer in sorted(probes):
        hasher.update(layer.to_bytes(4, "little") + len(probes[layer]).to_bytes(4, "little") + b"".join(probes[layer]))
    return hasher.digest()


class _Reader:
    """Takes a manifest's parts out of its JSON, refusing what is not as written by `encode_manifest`."""

    _HEAD_KEYS = ("shoal_manifest", "model_type", "weight_format", "config")
    _KEYS = frozenset((*_HEAD_KEYS, "trunk", "experts", "probes", "probes_blake3", "root"))

    def __init__(self, file: str, value: Mapping[str, object]) -> None:
        self._file = file
        self._value = value
        if value.get("shoal_manifest") != FORMAT_VERSION:
            raise self._refusal(f"version {value.get('shoal_manifest')!r:.40}; {FORMAT_VERSION} is known")
        if value.keys() != self._KEYS:
            raise self._refusal(f"keys {sorted(value.keys() ^ self._KEYS)[:8]} missing or unknown")

    def text(self, key: str) -> str:
        value = self._value[key]
        if not isinstance(value, str) or not value.isprintable() or len(value) > 64:
            raise self._refusal(f"{key} is {value!r:.80}")
        return value

    def weight_format(self) -> WeightFormat:
        word = self.text("weight_format")
        if word not in _FORMAT_WORDS:
            raise self._refusal(f"unknown weight_format {word}")
        return _FORMAT_WORDS[word]

    def digest(self, key: str) -> bytes:
        return self._hex(self._value[key], DIGEST_BYTES, key)

    def trunk(self) -> dict[str, TrunkLeaf]:
        return {name: self._leaf(name, value) for name, value in self._object("trunk").items()}

    def layers(self, key: str, item_bytes: int) -> dict[LayerId, tuple[bytes, ...]]:
        layers = {}
        for word, value in self._object(key).items():
            if not _LAYER.fullmatch(word) or int(word) > limits.MAX_LAYER:
                raise self._refusal(f"{key} of layer {word!r:.40}")
            raw = self._hex(value, None, f"{key} of layer {word}")
            if not raw or len(raw) % item_bytes or len(raw) > item_bytes * MAX_EXPERTS:
                raise self._refusal(f"{key} of layer {word}: {len(raw)} bytes, not so many times {item_bytes}")
            layers[LayerId(int(word))] = tuple(raw[i : i + item_bytes] for i in range(0, len(raw), item_bytes))
        return layers

    def _object(self, key: str) -> Mapping[str, object]:
        value = self._value[key]
        if not isinstance(value, dict):
            raise self._refusal(f"{key} is not an object")
        return cast(Mapping[str, object], value)

    def _leaf(self, name: str, value: object) -> TrunkLeaf:
        check_name(name, self._file)
        if not isinstance(value, list) or len(value) != 3:
            raise self._refusal(f"trunk tensor {name} is not [dtype, shape, digest]")
        dtype, shape, digest = value
        is_right = isinstance(dtype, str) and dtype in ITEM_BYTES and isinstance(shape, list) and len(shape) <= MAX_RANK
        if not is_right or any(type(size) is not int or not 0 <= size <= MAX_TENSOR_BYTES for size in shape):
            raise self._refusal(f"trunk tensor {name} is {dtype!r:.40}{shape!r:.80}")
        return TrunkLeaf(dtype, tuple(shape), self._hex(digest, DIGEST_BYTES, f"digest of {name}"))

    def _hex(self, value: object, size: int | None, what: str) -> bytes:
        if not isinstance(value, str) or set(value) - set("0123456789abcdef") or len(value) % 2:
            raise self._refusal(f"{what:.200} is not lowercase hex")
        if size is not None and len(value) != 2 * size:
            raise self._refusal(f"{what:.200} is not {size} bytes")
        return bytes.fromhex(value)

    def _refusal(self, reason: str) -> CheckpointError:
        return CheckpointError(self._file, None, reason)
