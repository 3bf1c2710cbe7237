"""Who has what and who is about to get it: the directory as it was at the last look. Pure; `peers.py` asks it."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from shoal.experts.pieces.pieces import ExpertPiece, Piece, TrunkPiece
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.records import HolderRecord

Place = tuple[LayerId, ExpertId]


@dataclass(slots=True)
class View:
    """Peers by what they said of themselves; we are not among them."""

    _holders: dict[Place, set[PeerId]] = field(default_factory=dict)
    _coming: dict[Place, set[PeerId]] = field(default_factory=dict)
    addresses: dict[PeerId, tuple[str, ...]] = field(default_factory=dict)
    trunk: set[PeerId] = field(default_factory=set)
    """Who gives the trunk."""

    @classmethod
    def of(cls, records: Iterable[HolderRecord], me: PeerId) -> "View":
        """What the records say, less our own."""
        view = cls()
        for record in records:
            if record.peer != me:
                view._add(record)
        return view

    def _add(self, record: HolderRecord) -> None:
        self.addresses[record.peer] = record.addresses
        if record.gives_trunk:
            self.trunk.add(record.peer)
        for expert in record.experts | record.cold:
            self._holders.setdefault((record.layer, expert), set()).add(record.peer)
        for expert in record.coming:
            self._coming.setdefault((record.layer, expert), set()).add(record.peer)

    def holders(self, piece: Piece) -> set[PeerId]:
        """Who has it, or, of a small file, may have it: they say so when they are asked."""
        match piece:
            case ExpertPiece():
                return self._holders.get((piece.layer, piece.expert), set())
            case TrunkPiece():
                return self.trunk
        return set(self.addresses)

    def getting(self, piece: Piece) -> set[PeerId]:
        """Who says that it is about to get this expert; nobody says it of anything else."""
        return self._coming.get((piece.layer, piece.expert), set()) if isinstance(piece, ExpertPiece) else set()

    def has_more_than(self, before: "View") -> bool:
        """Whether somebody has an expert that it had not before."""
        return any(peers - before._holders.get(place, set()) for place, peers in self._holders.items())
