"""What the directory says, as the arrays that placement and take-over work with: who holds each expert beside us.

Pure. What somebody reads from his disk is left out: it is the last resort, and nobody counts on it but who chooses what
to have on his own. So are replicas in another weight format, which are another model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shoal.node.holdings.placement import HolderFacts, Shape, SwarmView, count_replicas, look
from shoal.node.holdings.takeover import Counts
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.records import NOBODY, HolderRecord

Found = Mapping[LayerId, Sequence[HolderRecord]]
"""A directory's answer."""


@dataclass(frozen=True, slots=True)
class Me:
    """Who looks. `since_s`: Unix time at which we became a holder."""

    peer: PeerId
    since_s: int
    weight_format: int
    zone: str

    @property
    def order(self) -> tuple[int, PeerId]:
        """Our place among holders: of two that are about to take the same, the first does."""
        return self.since_s, self.peer


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """The swarm without us."""

    replicas: Counts
    """i32[L, E]: holders, and those that are about to be."""
    younger: Counts
    """i32[L, E]: those of them that are younger than we are."""
    view: SwarmView
    rank: int
    """How many holders act before us when something is rare: those with room first, the older first."""
    num_holders: int


def survey(
    shape: Shape, found: Found, me: Me, room: int, now_s: float, is_yielding: bool = False, counts_cold: bool = False
) -> Survey:
    """Add up a directory's answer. room: experts that we could hold besides.

    is_yielding: what others are about to hold counts only if they come before us, so that all who decide at the same
    moment see one order of things. counts_cold: what others have on disk counts as if they held it; for who chooses
    what to have on his.
    """
    records = [record for layer in found.values() for record in layer if _counts(record, me, counts_cold)]
    claims = [
        (record, _claimed(record, me, is_yielding) | (record.cold if counts_cold else NOBODY)) for record in records
    ]
    facts = [
        HolderFacts(
            record.layer, experts, now_s - record.since_s if record.since_s else 0.0,
            record.zone == me.zone, record.capacity_mmacs,
        )
        for record, experts in claims
    ]  # fmt: skip
    younger = [(record.layer, experts) for record, experts in claims if _order(record) > me.order]
    turns = {(record.room == 0, *_order(record)) for record in records}
    return Survey(
        replicas=count_replicas(shape, [(record.layer, experts) for record, experts in claims]),
        younger=count_replicas(shape, younger),
        view=look(shape, facts),
        rank=sum(turn < (room == 0, *me.order) for turn in turns),
        num_holders=len(turns),
    )


def with_us(survey_of_others: Survey, shape: Shape, mine: Mapping[LayerId, Sequence[ExpertId]]) -> Counts:
    """i32[L, E]: all replicas, ours among them."""
    return (survey_of_others.replicas + shape.mask(dict(mine))).astype(np.int32)  # type: ignore[arg-type]  # `mask` reads any sequences


def _counts(record: HolderRecord, me: Me, counts_cold: bool) -> bool:
    is_another = record.weight_format == me.weight_format and record.peer != me.peer
    return is_another and bool(record.experts or record.coming or (counts_cold and record.cold))


def _claimed(record: HolderRecord, me: Me, is_yielding: bool) -> frozenset[ExpertId]:
    if is_yielding and _order(record) > me.order:
        return record.experts
    return record.experts | record.coming


def _order(record: HolderRecord) -> tuple[int, PeerId]:
    return record.since_s, record.peer
