"""How tensors become hashes, and hashes one root: the arithmetic of the manifest.

Canonical encoding of a tensor, all integers little-endian: u16 length of the name, name (utf-8), u8 length of the
dtype, dtype (ascii, in the words of safetensors), u8 rank, u64 per dimension, u64 number of bytes, the bytes. A digest
is the BLAKE3 of such encodings one after another. Every field has its length before it, so that no two lists of tensors
have the same encoding.

The tree: leaf = BLAKE3(0x00 | key | digest), node = BLAKE3(0x01 | left | right), as in RFC 6962: the first byte keeps a
node from passing for a leaf. A last node without a partner rises a level unchanged; it is not paired with itself, which
would give two lists of leaves one root (CVE-2012-2459). Knows no manifests and no files.
"""

import json
import struct
from collections.abc import Iterable, Mapping, Sequence

from blake3 import blake3

from shoal.experts.checkpoint import StoredTensor

DIGEST_BYTES = 32

COSMETIC_KEYS = frozenset(
    {
        "_name_or_path",
        "_attn_implementation",
        "architectures",
        "auto_map",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
"""Keys of config.json that change nothing about the answer and differ between copies of one model; the dtype that
counts is that of the tensors. Everything else is part of the model's identity, known to us or not."""

_PARALLEL_FROM_BYTES = 4 * 1024 * 1024
"""Below it, starting BLAKE3's threads costs more than they give."""


def digest_tensors(tensors: Iterable[StoredTensor], *, is_alone: bool = True) -> bytes:
    """BLAKE3 of the canonical encodings of tensors, in the order given; 32 bytes. `is_alone`: it may use all cores."""
    tensors = list(tensors)
    is_large = sum(tensor.data.nbytes for tensor in tensors) >= _PARALLEL_FROM_BYTES
    hasher = blake3(max_threads=blake3.AUTO if is_large and is_alone else 1)
    for tensor in tensors:
        hasher.update(encode_head(tensor))
        hasher.update(tensor.raw)
    return hasher.digest()


def digest_bytes(data: bytes | bytearray | memoryview) -> bytes:
    """BLAKE3 of a piece, which is a canonical encoding already; 32 bytes."""
    return blake3(data, max_threads=blake3.AUTO if len(data) >= _PARALLEL_FROM_BYTES else 1).digest()


def digest_config(config: Mapping[str, object]) -> bytes:
    """BLAKE3 of config.json without its cosmetic keys, as JSON with sorted keys and no spaces; 32 bytes."""
    kept = {key: value for key, value in config.items() if key not in COSMETIC_KEYS}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return blake3(text.encode("ascii")).digest()


def leaf_hash(key: bytes, digest: bytes) -> bytes:
    """A leaf of the tree; `key` says what the digest is of."""
    return blake3(b"\x00" + key + digest).digest()


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """The root over leaf hashes; 32 bytes.

    Raises:
        ValueError: no leaves.
    """
    if not leaves:
        raise ValueError("a tree needs a leaf")
    level = list(leaves)
    while len(level) > 1:
        pairs = [blake3(b"\x01" + left + right).digest() for left, right in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[2 * len(pairs) :]
    return level[0]


def encode_head(tensor: StoredTensor) -> bytes:
    """What stands before a tensor's bytes in its canonical encoding."""
    return head_of(tensor.name, tensor.dtype, tensor.shape, tensor.data.nbytes)


def head_of(tensor: str, dtype: str, shape: Sequence[int], size_bytes: int) -> bytes:
    """As `encode_head`, of a tensor that nobody has read."""
    name, word = tensor.encode("utf-8"), dtype.encode("ascii")
    words = struct.pack(f"<B{len(shape)}QQ", len(shape), *shape, size_bytes)
    return struct.pack("<H", len(name)) + name + struct.pack("<B", len(word)) + word + words
