"""What goes wrong in a run, when and where: plain data, drawn from a seed. Pure; knows no network and no clock.

Some nodes are steady: together they hold every expert, and nothing for good happens to them, so that a run with a plan
drawn here must end with every token right. All others may die at any moment.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum


class Kind(Enum):
    """Kinds of faults."""

    CRASH = "crash"
    """The process dies; its connections are reset."""
    RESTART = "restart"
    """It dies and comes back."""
    SILENCE = "silence"
    """The cable is cut: nothing arrives or leaves any more, and nobody is told."""
    STALL = "stall"
    """SIGSTOP: nothing is read or written, connections stay; later everything is delivered."""
    PARTITION = "partition"
    """The link to the client carries nothing for a while; later everything is delivered (TCP sends again)."""
    RESET = "reset"
    """All connections of a node are reset once; the process lives."""
    SLOW = "slow"
    """Its kernels take many times longer."""
    FREEZE = "freeze"
    """Its kernel stands still (the owner's machine swaps): what waits is worked off later, or is too late."""
    FULL_DISK = "full_disk"
    """Its disk takes no byte more: what it was about to take over can not be stored."""
    DELAY = "delay"
    """Each segment is late by a random time; order within a connection stays."""
    LOST_REPLY = "lost_reply"
    """Some requests are never answered."""
    LATE_REPLY = "late_reply"
    """Some answers come after a random time, so that answers overtake each other."""
    BUSY = "busy"
    """Every request is refused with BUSY."""
    BAD_REPLY = "bad_reply"
    """Some answers hold NaN, have another shape or answer another request."""
    DUPLICATE = "duplicate"
    """Some frames arrive twice."""
    GARBAGE = "garbage"
    """Some frames arrive damaged."""


TRANSIENT = frozenset(
    {
        Kind.STALL, Kind.PARTITION, Kind.RESET, Kind.SLOW, Kind.FREEZE, Kind.FULL_DISK, Kind.DELAY, Kind.LATE_REPLY,
        Kind.BUSY,
    }
)  # fmt: skip
"""What may happen to a steady node: it answers in the end, and it is never to blame."""

SHORTEST_S, LONGEST_S = 0.01, 3.0
FULL_FOR_S = (1.0, 5.0)
"""A disk does not become empty by itself: it is full for longer than other faults last."""

MOST_FAULTS = 12

CLOCK = "clock"
"""What a wrong clock is called among faults: it has no time at which it begins."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong."""

    kind: Kind
    node: int
    """Place of the node in the world."""
    at_s: float
    """Virtual time at which it begins."""
    until_s: float
    """When it ends; for RESTART, when the node is back."""
    strength: float
    """0..1: how likely, how slow, how late; what it means is the kind's."""


@dataclass(slots=True)
class FaultTally:
    """How often faults came, and whether they met anybody: a plan whose faults touch nothing tries nothing."""

    began: Counter[Kind] = field(default_factory=Counter)
    """Faults whose time came before the run was over."""
    struck: Counter[Kind] = field(default_factory=Counter)
    """What they touched: processes and connections of nodes that were up, segments, answers, kernel calls, writes."""
    num_hours_off: int = 0
    """Nodes whose clock was an hour off."""

    def add(self, other: "FaultTally") -> None:
        """Count another's too."""
        self.began += other.began
        self.struck += other.struck
        self.num_hours_off += other.num_hours_off

    def as_json(self) -> dict[str, list[int]]:
        """By name: [began, struck]."""
        counts = {kind.value: [self.began[kind], self.struck[kind]] for kind in Kind}
        return counts | {CLOCK: [self.num_hours_off, self.num_hours_off]}

    @staticmethod
    def from_json(counts: Mapping[str, Sequence[int]]) -> "FaultTally":
        """What `as_json` gave.

        Raises:
            KeyError, IndexError, TypeError, ValueError: it did not.
        """
        began = Counter({kind: int(counts[kind.value][0]) for kind in Kind})
        return FaultTally(began, Counter({kind: int(counts[kind.value][1]) for kind in Kind}), int(counts[CLOCK][0]))


def draw_faults(rng: random.Random, num_nodes: int, steady: Sequence[int], span_s: float) -> list[Fault]:
    """Draw a plan for `num_nodes` nodes whose faults begin within `span_s` seconds; sorted by time."""
    plan = [_draw(rng, num_nodes, frozenset(steady), span_s) for _ in range(rng.randint(1, MOST_FAULTS))]
    return sorted(plan, key=lambda fault: (fault.at_s, fault.node, fault.kind.value))


def full_disks(rng: random.Random, num_nodes: int) -> list[Fault]:
    """Every disk is full from the beginning, each for a time of its own."""
    return [Fault(Kind.FULL_DISK, node, 0.0, rng.uniform(*FULL_FOR_S), 1.0) for node in range(num_nodes)]


def _draw(rng: random.Random, num_nodes: int, steady: frozenset[int], span_s: float) -> Fault:
    node = rng.randrange(num_nodes)
    kinds = [kind for kind in Kind if node not in steady or kind in TRANSIENT]
    at_s = rng.uniform(0, span_s)
    lasts_s = SHORTEST_S * (LONGEST_S / SHORTEST_S) ** rng.random()  # short and long ones alike
    kind = rng.choice(kinds)
    if kind is Kind.FULL_DISK:
        lasts_s = rng.uniform(*FULL_FOR_S)
    return Fault(kind, node, at_s, at_s + lasts_s, rng.random())
