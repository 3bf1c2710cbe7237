"""What a node does beside answering: bring what it is to hold and lacks, then look after its swarm, for ever."""

import asyncio

from shoal.node.holdings.assignment import Holding
from shoal.node.holdings.healer import Healer, HealSettings
from shoal.node.holdings.joining import Place
from shoal.node.holdings.keeper import Keeper
from shoal.node.log_events import FillFailed, log_event
from shoal.node.settings import NodeSettings
from shoal.protocol.errors import ShoalError

STEPS_PER_GRACE = 4
"""Between one holder's turn to take over and the next: a quarter of what all wait."""

REFILL_S = 60.0
"""After what was to be held could not be brought here: the disk was full, say."""


async def fill_and_heal(
    settings: NodeSettings, place: Place, keeper: Keeper, pinned: Holding, missing: Holding, cold: Holding
) -> None:
    """Bring what is missing, however often that takes; then take over what the swarm loses, if there is room for it or
    something to give up. What is to be read from disk comes meanwhile. pinned: what the owner named. cold: what is to
    be on disk."""
    while missing := keeper.lacking(missing):
        try:
            await keeper.take(missing)
        except (ShoalError, OSError) as error:
            log_event(FillFailed(type(error).__name__))
            await asyncio.sleep(REFILL_S)
    async with asyncio.TaskGroup() as group:
        group.create_task(_fill_disk(keeper, cold), name="fill the disk")
        group.create_task(_heal(settings, place, keeper, pinned), name="heal")


async def _fill_disk(keeper: Keeper, cold: Holding) -> None:
    while missing := keeper.lacking_cold(cold):
        try:
            await keeper.bring_cold(missing)
        except (ShoalError, OSError) as error:
            log_event(FillFailed(type(error).__name__))
            await asyncio.sleep(REFILL_S)


async def _heal(settings: NodeSettings, place: Place, keeper: Keeper, pinned: Holding) -> None:
    is_fixed = keeper.room == 0 and keeper.holding == pinned
    if settings.heal_after_s > 0 and not is_fixed:
        how_soon = HealSettings(settings.heal_after_s, settings.heal_after_s / STEPS_PER_GRACE)
        await Healer(place, keeper, pinned, how_soon).run()
