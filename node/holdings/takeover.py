"""When to take over what a swarm has too few of, and what to give up for it: pure, time is an argument.

An expert must have been rare for longer than a restart takes; older nodes go first, for they will stay; what is given
up has more holders than needed even without us, and only its youngest holders give it up, so that any number of nodes
that decide at the same moment leave enough. Between the two numbers of replicas nothing moves: no oscillation.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal.node.holdings.placement import TARGET_REPLICAS, Mask, Shape, SwarmView, choose
from shoal.protocol.ids import PeerId
from shoal.protocol.limits import RECORD_TTL_S

Counts = npt.NDArray[np.int32]

GRACE_S = 120.0
"""How long an expert must have been rare: a node that restarts is back by then, and a record outlives its holder by
up to 90 s, which comes on top."""

STEP_S = RECORD_TTL_S / 3
"""Between one node's turn and the next by age: what the older one takes has been announced by then."""

MAX_TURNS = 10
"""The oldest have turns of their own; all younger ones share the last, and the check after announcing parts them."""

SPARE_REPLICAS = 1
"""An expert is given up only if so many more than the target stay without us."""


class Rarity:
    """Since when each expert has been rare; the only state of healing. Times are of one monotonic clock."""

    def __init__(self, shape: Shape, target: int = TARGET_REPLICAS) -> None:
        self._since_s = np.full(shape.size, np.inf)
        self._target = target

    def update(self, replicas: Counts, now_s: float) -> None:
        """Take note of a look into the directory."""
        is_rare = replicas < self._target
        self._since_s = np.where(is_rare, np.minimum(self._since_s, now_s), np.inf)

    def overdue(self, wait_s: float, now_s: float) -> Mask:
        """bool[L, E]: rare for `wait_s` and more."""
        found: Mask = self._since_s + wait_s <= now_s
        return found


def turn_s(rank: int, grace_s: float = GRACE_S, step_s: float = STEP_S) -> float:
    """How long the holder of this place by age (0: the oldest) lets an expert be rare before it acts."""
    return grace_s + step_s * min(rank, MAX_TURNS)


def spare(replicas: Counts, younger: Counts, mine: Mask, target: int = TARGET_REPLICAS) -> Mask:
    """bool[L, E]: what we may give up. younger: holders of each expert that are younger than we are."""
    num_too_many = replicas - (target + SPARE_REPLICAS)
    found: Mask = mine & (younger < num_too_many)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Move:
    """What to take and what to give up for it: bool[L, E] each."""

    take: Mask
    drop: Mask

    @property
    def num_taken(self) -> int:
        return int(self.take.sum())

    @property
    def num_dropped(self) -> int:
        return int(self.drop.sum())


@dataclass(frozen=True, slots=True, eq=False)
class Means:
    """What one node has to take over with. `room`: experts that fit beside what it holds."""

    peer: PeerId
    mine: Mask
    may_drop: Mask
    room: int


def plan_move(shape: Shape, view: SwarmView, means: Means, overdue: Mask) -> Move:
    """Take what is overdue, as much as there is room, or can be made by giving up what has most holders."""
    budget = means.room + int(means.may_drop.sum())
    take = choose(shape, view, budget, means.peer, overdue & ~means.mine)
    return Move(take, _most_plentiful(view, means.may_drop, int(take.sum()) - means.room))


def _most_plentiful(view: SwarmView, may_drop: Mask, count: int) -> Mask:
    found = np.zeros(may_drop.size, np.bool_)
    if count > 0:
        plenty = np.where(may_drop, view.expected, -np.inf).ravel()
        found[np.argsort(-plenty, kind="stable")[:count]] = True
    return found.reshape(may_drop.shape)
