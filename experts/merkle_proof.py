"""Proof that one expert belongs to a model, for whoever knows only the root: 0.5 kB where the manifest has 2.3 MB.

A proof is the sibling hashes on the way from an expert's leaf to the root (`digest.merkle_root`): 15 of them for
DeepSeek-V3's 15,500 leaves. The number of leaves gives the tree its shape and needs no trust of its own: a leaf hashes
its key, `expert/<layer>/<expert>`, so that a lie about place or number ends at another root.

Bytes, integers little-endian: `shoalmp1` · u32 layer · u32 expert · u32 index · u32 num_leaves · digest (32) · u8 n ·
n siblings (32 each), lowest level first. Knows hashes; knows no files and no models.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from blake3 import blake3

from shoal.experts.digest import DIGEST_BYTES, leaf_hash
from shoal.experts.manifest import Manifest, expert_key
from shoal.protocol import limits
from shoal.protocol.errors import CheckpointError
from shoal.protocol.ids import ExpertId, LayerId

MAGIC = b"shoalmp1"

MAX_SIBLINGS = 32
"""Levels of a tree whose leaves a u32 counts."""

_HEAD = struct.Struct("<8sIIII32sB")


@dataclass(frozen=True, slots=True)
class ExpertProof:
    """An expert's digest, and the way from its leaf to a root."""

    layer: LayerId
    expert: ExpertId
    index: int
    """Of its leaf."""
    num_leaves: int
    digest: bytes
    siblings: tuple[bytes, ...]

    @property
    def root(self) -> bytes:
        """The root that this proof leads to: compare it with the one you trust.

        Raises:
            CheckpointError: it has more or fewer siblings than a tree of so many leaves asks for.
        """
        value = leaf_hash(expert_key(self.layer, self.expert), self.digest)
        index, count, siblings = self.index, self.num_leaves, list(reversed(self.siblings))
        while count > 1:
            if index ^ 1 < count:  # else it is the last one and has no partner: it rises as it is
                if not siblings:
                    _refuse("too few siblings")
                pair = (siblings.pop(), value) if index & 1 else (value, siblings.pop())
                value = blake3(b"\x01" + pair[0] + pair[1]).digest()
            index, count = index >> 1, (count + 1) >> 1
        if siblings:
            _refuse("too many siblings")
        return value

    def encode(self) -> bytes:
        """As bytes; 57 and 32 for each sibling."""
        head = _HEAD.pack(MAGIC, self.layer, self.expert, self.index, self.num_leaves, self.digest, len(self.siblings))
        return head + b"".join(self.siblings)


def prove_expert(manifest: Manifest, layer: LayerId, expert: ExpertId) -> ExpertProof:
    """The proof of one expert.

    Raises:
        InvalidRequest: the manifest has no such expert.
    """
    digest, leaves = manifest.expert_digest(layer, expert), manifest.leaves()
    before = sum(len(digests) for number, digests in manifest.experts.items() if number < layer)
    index = 1 + len(manifest.trunk) + before + expert
    return ExpertProof(layer, expert, index, len(leaves), digest, _siblings(leaves, index))


def check_proof(proof: ExpertProof, root: bytes) -> None:
    """Raises CheckpointError unless the proof leads to `root` (32 bytes)."""
    if proof.root != root:
        _refuse(f"it proves expert {proof.expert} of layer {proof.layer} for root {proof.root.hex()[:16]}…")


def decode_proof(raw: bytes) -> ExpertProof:
    """The reverse of `ExpertProof.encode`.

    Raises:
        CheckpointError: not such bytes, or numbers out of range.
    """
    if len(raw) < _HEAD.size or raw[: len(MAGIC)] != MAGIC:
        _refuse("these are not the bytes of one")
    _, layer, expert, index, num_leaves, digest, count = _HEAD.unpack_from(raw)
    if count > MAX_SIBLINGS or len(raw) != _HEAD.size + count * DIGEST_BYTES:
        _refuse(f"{count} siblings in {len(raw)} bytes")
    if layer > limits.MAX_LAYER or not index < num_leaves:
        _refuse(f"leaf {index} of {num_leaves}, layer {layer}")
    siblings = tuple(raw[at : at + DIGEST_BYTES] for at in range(_HEAD.size, len(raw), DIGEST_BYTES))
    return ExpertProof(LayerId(layer), ExpertId(expert), index, num_leaves, digest, siblings)


def _siblings(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    level, found = list(leaves), []
    while len(level) > 1:
        if index ^ 1 < len(level):
            found.append(level[index ^ 1])
        pairs = [blake3(b"\x01" + left + right).digest() for left, right in zip(level[::2], level[1::2], strict=False)]
        level, index = pairs + level[2 * len(pairs) :], index >> 1
    return tuple(found)


def _refuse(reason: str) -> NoReturn:
    raise CheckpointError("proof", None, reason)
