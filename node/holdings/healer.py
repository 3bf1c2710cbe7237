"""A node's watch over its swarm: it notices what has too few holders for too long and takes it over in its turn.

Nobody is in charge: every node runs this, sees about the same directory and follows the same rule (`takeover.py`). What
it is about to take it announces first, waits, and takes only what nobody before it announced too. Time passes in the
loop's clock only.
"""

import asyncio
from dataclasses import dataclass

from shoal.node.holdings.assignment import Holding
from shoal.node.holdings.joining import SETTLE_S, Place
from shoal.node.holdings.keeper import Keeper
from shoal.node.holdings.placement import TARGET_REPLICAS, Mask
from shoal.node.holdings.survey import Survey, survey, with_us
from shoal.node.holdings.takeover import GRACE_S, STEP_S, Means, Move, Rarity, plan_move, spare, turn_s
from shoal.node.log_events import ExpertsTakenOver, TakeOverFailed, log_event
from shoal.protocol.errors import ShoalError
from shoal.protocol.limits import RECORD_TTL_S

LOOKS_PER_GRACE = 4
LONGEST_LOOK_S = RECORD_TTL_S / 3
"""Between two looks: a quarter of the grace, and at most what a record takes to be renewed."""

SEEN_LOOKS = 1.5
"""A look may take what the directory told us so many looks ago: what it tells with each of our own pulses (40 s) is
enough to see that something is rare, and costs nothing. Before anything is taken over, it is asked anew."""

REST_S = 1800.0
"""After a take-over that failed: others see the announcement go and must have the time to act themselves."""


@dataclass(frozen=True, slots=True)
class HealSettings:
    """How soon. Small values are for small swarms and tests."""

    grace_s: float = GRACE_S
    step_s: float = STEP_S

    @property
    def look_s(self) -> float:
        return min(LONGEST_LOOK_S, max(self.grace_s, 1.0) / LOOKS_PER_GRACE)


class Healer:
    """One node's part in mending its swarm."""

    def __init__(self, place: Place, keeper: Keeper, pinned: Holding, settings: HealSettings) -> None:
        """pinned: what its owner named, never given up."""
        self._place = place
        self._shape = place.shape
        self._keeper = keeper
        self._pinned = place.shape.mask(pinned)
        self._settings = settings
        self._rarity = Rarity(place.shape)
        self._resting_until_s = 0.0

    async def run(self) -> None:
        """Look and mend, for ever. Cancellation: what was announced and not loaded expires with its record."""
        while True:
            await asyncio.sleep(self._settings.look_s * (0.5 + self._place.draw()))
            if not self._keeper.announcer.is_present:
                continue  # a paused node takes nothing over
            if self._resting_until_s > asyncio.get_running_loop().time():
                continue
            try:
                await self.look()
            except (ShoalError, OSError) as error:  # a directory or a disk that fails now may not the next time
                log_event(TakeOverFailed(type(error).__name__))

    async def look(self) -> Move | None:
        """One look, and what follows from it.

        Raises:
            NetworkError: the directory. CheckpointError, IntegrityError, OSError: a weight could not be loaded.
        """
        others = await self._survey(is_yielding=False, max_age_s=SEEN_LOOKS * self._settings.look_s)
        now_s, holding = asyncio.get_running_loop().time(), self._keeper.holding
        replicas, mine = with_us(others, self._shape, holding), self._shape.mask(holding)
        self._rarity.update(replicas, now_s)
        wait_s = turn_s(others.rank, self._settings.grace_s, self._settings.step_s)
        overdue = self._rarity.overdue(wait_s, now_s) & ~mine
        if not overdue.any():
            return None
        may_drop = spare(replicas, others.younger, mine & ~self._pinned)
        move = plan_move(
            self._shape, others.view, Means(self._place.me.peer, mine, may_drop, self._keeper.room), overdue
        )
        return await self._carry_out(move) if move.num_taken else None

    async def _carry_out(self, move: Move) -> Move | None:
        """Announce, look again, and do what still makes sense."""
        keeper, drop = self._keeper, self._shape.holding(move.drop)
        try:
            await keeper.announce(self._shape.holding(move.take), drop)
            await asyncio.sleep(SETTLE_S * (0.5 + self._place.draw()))
            if not self._still_right(move, await self._survey(is_yielding=True)):
                await keeper.announce()
                return None
            await keeper.drop(drop)
            await keeper.take(self._shape.holding(move.take))
        except BaseException:
            keeper.forget_plans()
            self._resting_until_s = asyncio.get_running_loop().time() + REST_S
            raise
        log_event(ExpertsTakenOver(move.num_taken, move.num_dropped))
        return move

    def _still_right(self, move: Move, others: Survey) -> bool:
        """Nobody before us takes what we would, and without us there is enough of what we would give up."""
        is_rare = _all(others.replicas < TARGET_REPLICAS, move.take)
        return is_rare and _all(others.replicas >= TARGET_REPLICAS, move.drop)

    async def _survey(self, is_yielding: bool, max_age_s: float = 0.0) -> Survey:
        place = self._place
        root = self._keeper.announcer.claim.model_root
        found = await place.directory.lookup(root, self._shape.layers, max_age_s)
        return survey(self._shape, found, place.me, self._keeper.room, place.clock(), is_yielding)


def _all(condition: Mask, where: Mask) -> bool:
    return bool(condition[where].all())
