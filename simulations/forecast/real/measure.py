"""The measurement itself: every setting on its network, several rounds, in one swarm per shape."""

import asyncio
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext

from shoal.protocol.errors import InvalidRequest
from shoal.simulations.arena import Arena, open_arena
from shoal.simulations.forecast.real.clocks import decode, prefill_s
from shoal.simulations.forecast.real.local_costs import arena_settings
from shoal.simulations.forecast.real.networks import RealSetting, by_shape
from shoal.simulations.wan.link import Link

NUM_TOKENS, NUM_WARM = 64, 6
QUIET_S = 2.0
"""Before each measured prompt: after so long TCP's windows are as small as those of a new connection."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One setting: seconds of a pass, or to the first token of a prompt; of each round."""

    setting: RealSetting
    rounds_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        return statistics.median(self.rounds_s)


async def measure_all(
    context: ForkServerContext,
    settings: Sequence[RealSetting],
    num_experts: int,
    rounds: int,
    on_done: Callable[[RealSetting], None],
) -> list[Measured]:
    """Measure every setting; in the order of `settings`. on_done: told after each.

    Raises:
        ShoalError: what network, nodes or swarm raise.
    """
    measured: dict[RealSetting, Measured] = {}
    for shape, some in by_shape(settings).items():
        async with open_arena(context, arena_settings(shape, Link()), num_experts, lambda _: None) as arena:
            for setting in some:
                _set_links(arena, setting.link)
                measured[setting] = await _measure(arena, setting, rounds)
                on_done(setting)
    return [measured[each] for each in settings]


def _set_links(arena: Arena, link: Link) -> None:
    """Of all nodes and of the client."""
    if arena.network is None:
        raise InvalidRequest("links can change only where there are namespaces")
    for host in arena.network.hosts:
        arena.network.set_link(host.index, link)


async def _measure(arena: Arena, setting: RealSetting, rounds: int) -> Measured:
    """An answer passes before, and a prompt before prompts: round trips are known then, and deadlines fit large frames
    on this link. (The first large frames on a slow link miss theirs, and some are sent again.)

    Where packets are lost, the mean is what is measured, for most tokens meet no loss; else the median.
    """
    engine, taken = arena.swarm.engine, list[float]()
    await decode(engine, setting.streams, NUM_WARM)
    if setting.prompt:
        await prefill_s(engine, setting.prompt, rounds)
    for place in range(rounds):
        if setting.prompt:
            await asyncio.sleep(QUIET_S)
            taken.append(await prefill_s(engine, setting.prompt, place))
        else:
            times = await decode(engine, setting.streams, NUM_TOKENS)
            taken.append(times.mean_s if setting.loss else times.median_s)
    return Measured(setting, tuple(taken))
