"""How a node that was not told what to hold finds its place: look, choose, say so, look again, until nothing changes.

Those who join at the same moment see the same gaps. Each announces its choice before it loads a byte; the earlier of
two (by `since_s`, then peer id) keeps it, the later chooses anew as if the earlier held it already.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from shoal.node.announcer import Announcer
from shoal.node.holdings.assignment import Holding
from shoal.node.holdings.nearness import MIN_READS_S, layout_for, whom_to_ask
from shoal.node.holdings.placement import FAR, TARGET_REPLICAS, Around, Mask, Shape, choose
from shoal.node.holdings.survey import Me, Survey, survey
from shoal.protocol.net.directory import Directory
from shoal.protocol.net.round_trip import round_trip_s

SETTLE_S = 1.0
"""From an announcement to the next look, with half of it as jitter: a lookup among 24 nodes takes 27 ms (median), so
all who announced at the same moment are seen."""

MAX_ROUNDS = 6
"""In each round at least one more of those who came together has found its place; the rest overlap and stay."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a node holds, and why, in figures."""

    holding: Holding
    num_experts: int
    num_missing: int
    """Of these, nobody held so many."""
    num_rare: int
    """So many had fewer holders than they should."""
    num_whole_groups: int
    num_holders: int
    """Holders of this model that were there before us."""

    @property
    def figures(self) -> tuple[int, int, int, int, int]:
        return self.num_experts, self.num_missing, self.num_rare, self.num_whole_groups, self.num_holders


@dataclass(frozen=True, slots=True)
class Place:
    """What a newcomer knows of itself and its swarm. draw: a number in 0..1, for jitter; clock: Unix time."""

    shape: Shape
    me: Me
    capacity: int
    """Experts that fit."""
    directory: Directory
    announcer: Announcer
    draw: Callable[[], float]
    clock: Callable[[], float]
    around: Around = FAR


async def look_around(
    place: Place, ours: Sequence[str], seeds: Sequence[str], needed_s: float, clock: Callable[[], float]
) -> Around:
    """What the network around us is like. ours: our own multiaddrs; seeds: those of peers whom we joined by; needed_s:
    within how much time peers answer that are near; clock: seconds, for durations.

    Raises:
        NetworkError: the directory can not be read.
    """
    me = place.me
    if needed_s < MIN_READS_S:
        return Around(zone=me.zone)
    found = await place.directory.lookup(place.announcer.claim.model_root, place.shape.layers)
    asked = whom_to_ask(found, me.peer, me.zone, seeds, place.draw)
    answers = await asyncio.gather(*(round_trip_s(each, clock, ours) for each in asked))
    return Around(layout_for(answers, needed_s), me.zone)


async def find_place(place: Place, is_alone: bool) -> Choice:
    """Choose what to hold. is_alone: we begin a new swarm, and nobody can come between.

    Raises:
        NetworkError: the directory can not be read or written.
    Cancellation: what was announced as coming expires with its record.
    """
    others = await _look(place)
    chosen = choose(place.shape, others.view, place.capacity, place.me.peer, around=place.around)
    for _ in range(0 if is_alone else MAX_ROUNDS):
        await place.announcer.declare(replace(place.announcer.claim, coming=place.shape.holding(chosen)))
        await asyncio.sleep(SETTLE_S * (0.5 + place.draw()))
        others, before = await _look(place), chosen
        chosen = choose(place.shape, others.view, place.capacity, place.me.peer, around=place.around)
        if (chosen == before).all():
            break
    return _explain(place.shape, others, chosen)


async def _look(place: Place) -> Survey:
    found = await place.directory.lookup(place.announcer.claim.model_root, place.shape.layers)
    return survey(place.shape, found, place.me, place.capacity, place.clock(), is_yielding=True)


def _explain(shape: Shape, others: Survey, chosen: Mask) -> Choice:
    return Choice(
        holding=shape.holding(chosen),
        num_experts=int(chosen.sum()),
        num_missing=int(np.sum(chosen & (others.replicas == 0))),
        num_rare=int(np.sum(chosen & (others.replicas < TARGET_REPLICAS))),
        num_whole_groups=int(shape.by_group(chosen).all(axis=2).sum()),
        num_holders=others.num_holders,
    )
