"""What a model consists of: one piece per expert and one per trunk tensor, each with its digest.

Knows the manifest; knows no files and no sources.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from shoal.experts.digest import head_of
from shoal.experts.manifest import Manifest, TrunkLeaf
from shoal.experts.safetensors_header import ITEM_BYTES
from shoal.protocol.ids import ExpertId, LayerId

_LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,6})\.")


@dataclass(frozen=True, slots=True)
class ExpertPiece:
    """One routed expert: all its tensors."""

    digest: bytes
    layer: LayerId
    expert: ExpertId

    @property
    def name(self) -> str:
        """What people call it."""
        return f"expert {self.layer}:{self.expert}"


@dataclass(frozen=True, slots=True)
class TrunkPiece:
    """One tensor outside the routed experts. `size_bytes`: of its encoding, exactly."""

    digest: bytes
    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FilePiece:
    """A small file of a model, or the list of them, taken from peers alone. `size_bytes`: its length at most."""

    digest: bytes
    name: str
    size_bytes: int


Piece = ExpertPiece | TrunkPiece | FilePiece


def expert_pieces(manifest: Manifest, wanted: Iterable[tuple[LayerId, ExpertId]]) -> list[ExpertPiece]:
    """The pieces of some experts, in the order given.

    Raises:
        InvalidRequest: the manifest knows no such expert.
    """
    return [ExpertPiece(manifest.expert_digest(layer, expert), layer, expert) for layer, expert in wanted]


def all_experts(manifest: Manifest) -> list[tuple[LayerId, ExpertId]]:
    """Every expert of a model, by layer and number."""
    return [
        (layer, ExpertId(expert))
        for layer in sorted(manifest.experts)
        for expert in range(len(manifest.experts[layer]))
    ]


def trunk_pieces(manifest: Manifest, layers: range | None = None) -> list[TrunkPiece]:
    """The pieces of the trunk, by name. layers: only what these layers need, and what belongs to none."""
    leaves = sorted(manifest.trunk.items())
    return [trunk_piece(name, leaf) for name, leaf in leaves if layers is None or _is_within(name, layers)]


def trunk_piece(name: str, leaf: TrunkLeaf) -> TrunkPiece:
    """The piece of one tensor."""
    size_bytes = prod(leaf.shape) * ITEM_BYTES[leaf.dtype]
    return TrunkPiece(leaf.digest, name, len(head_of(name, leaf.dtype, leaf.shape, size_bytes)) + size_bytes)


def _is_within(name: str, layers: range) -> bool:
    found = _LAYER.search(name)
    return found is None or int(found[1]) in layers
