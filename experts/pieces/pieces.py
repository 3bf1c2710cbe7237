"""What a model consists of: one piece per expert and one per trunk tensor, each with its digest.

Knows the manifest; knows no files and no sources.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from shoal.experts.manifest import Manifest
from shoal.protocol.ids import ExpertId, LayerId


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
    """One tensor outside the routed experts."""

    digest: bytes
    name: str


Piece = ExpertPiece | TrunkPiece


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


def trunk_pieces(manifest: Manifest) -> list[TrunkPiece]:
    """The pieces of the trunk, by name."""
    return [TrunkPiece(leaf.digest, name) for name, leaf in sorted(manifest.trunk.items())]
