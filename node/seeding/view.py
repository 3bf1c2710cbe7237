"""Who has what and who is about to get it: the directory as it was at the last look. Pure; `peers.py` asks it."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from shoal.experts.pieces.pieces import ExpertPiece, Piece, TrunkPiece
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.records import HolderRecord

Place = tuple[LayerId, ExpertId]

NOTHING: frozenset[ExpertId] = frozenset()


@dataclass(slots=True)
class View:
    """Peers by what they said of themselves; we are not among them. Who has one expert is found when it is asked: a
    node wants a few of a model's thousands."""

    _records: dict[LayerId, list[HolderRecord]] = field(default_factory=dict)
    _holders: dict[Place, set[PeerId]] = field(default_factory=dict)
    """What was asked."""
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
        self._records.setdefault(record.layer, []).append(record)

    def holders(self, piece: Piece) -> set[PeerId]:
        """Who has it, or, of a small file, may have it: they say so when they are asked."""
        match piece:
            case ExpertPiece():
                return self._holding((piece.layer, piece.expert))
            case TrunkPiece():
                return self.trunk
        return set(self.addresses)

    def _holding(self, place: Place) -> set[PeerId]:
        found = self._holders.get(place)
        if found is None:
            layer, expert = place
            has = (each for each in self._records.get(layer, ()) if expert in each.experts or expert in each.cold)
            found = self._holders[place] = {each.peer for each in has}
        return found

    def getting(self, piece: Piece) -> set[PeerId]:
        """Who says that it is about to get this expert; nobody says it of anything else."""
        if not isinstance(piece, ExpertPiece):
            return set()
        found = self._coming.get((piece.layer, piece.expert))
        if found is None:
            found = {each.peer for each in self._records.get(piece.layer, ()) if piece.expert in each.coming}
            self._coming[piece.layer, piece.expert] = found
        return found

    def has_more_than(self, before: "View") -> bool:
        """Whether somebody has an expert that it had not before."""
        return any(
            (each.experts | each.cold) - had.get(each.peer, NOTHING)
            for layer, records in self._records.items()
            for had in (before._had(layer),)
            for each in records
        )

    def _had(self, layer: LayerId) -> dict[PeerId, frozenset[ExpertId]]:
        return {each.peer: each.experts | each.cold for each in self._records.get(layer, ())}
