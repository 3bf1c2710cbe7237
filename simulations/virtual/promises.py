"""What must hold in every run, whatever goes wrong. Broken, it raises BrokenPromise with one line."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shoal.client.routing.dispatch import HEDGE_BURST, HEDGE_SHARE
from shoal.experts.pieces.store import ARRIVING
from shoal.protocol.events import DispatchSent, Event, Hedged
from shoal.simulations.virtual.node import SimulatedNode
from shoal.simulations.virtual.world import World


class BrokenPromise(AssertionError):
    """An invariant does not hold."""


@dataclass(slots=True)
class Promises:
    """Counts of events that are bounded."""

    num_clients: int = 1
    num_sent: int = 0
    num_hedged: int = 0

    def saw(self, event: Event) -> None:
        """Count an event."""
        self.num_sent += isinstance(event, DispatchSent)
        self.num_hedged += isinstance(event, Hedged)

    def check(self) -> None:
        """Extra requests stay within their budget.

        Raises:
            BrokenPromise: they do not.
        """
        allowed = HEDGE_SHARE * self.num_sent + HEDGE_BURST * self.num_clients
        if self.num_hedged > allowed:
            raise BrokenPromise(f"{self.num_hedged} hedges in {self.num_sent} requests, {allowed:.0f} are allowed")


def check_tokens(got: Sequence[int], expected: Sequence[int]) -> None:
    """Every token equals the oracle's, and none is missing.

    Raises:
        BrokenPromise: one does not.
    """
    if list(got) == list(expected):
        return
    if len(got) != len(expected):
        raise BrokenPromise(f"{len(got)} tokens without an error, the oracle has {len(expected)}")
    place = next(place for place, pair in enumerate(zip(got, expected, strict=True)) if pair[0] != pair[1])
    raise BrokenPromise(f"token {place} is {got[place]}, the oracle has {expected[place]}")


def check_nodes(world: World) -> None:
    """At the end every node is well, and no disk was asked for what others would have answered.

    Raises:
        BrokenPromise: one is not, or was.
    """
    if world.num_needless:
        raise BrokenPromise(f"{world.num_needless} requests went to a disk while others could answer")
    for node in world.nodes:
        for wrong in _wrongs(node):
            raise BrokenPromise(f"node {node.place} {wrong}")


def _wrongs(node: SimulatedNode) -> Iterator[str]:
    """What a node may not be, and would refuse others, lie to them or be useless for."""
    if node.admission is not None and node.admission.backlog_s > 0 and not node.is_computing:
        yield f"is idle and has a backlog of {node.admission.backlog_s:.3f} s"
    if node.num_unwanted:
        yield f"computed {node.num_unwanted} times what nobody waited for any more"
    if node.has_lost_its_healer:
        yield "runs and watches over its swarm no more"
    if left := node.disk.files(ARRIVING):
        yield f"has {len(left)} half-written pieces on its disk"
    if node.keeper is not None:
        claimed, held = node.keeper.announcer.claim.holding, node.keeper.holding
        if any(not set(experts) <= set(held.get(layer, ())) for layer, experts in claimed.items()):
            yield "announces what it does not hold"


def check_tasks() -> None:
    """At the end nothing runs on.

    Raises:
        BrokenPromise: a task does.
    """
    left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    if left:
        raise BrokenPromise(f"tasks are left behind: {', '.join(sorted(left))}")
