"""One cell of `make bench-wan`: the answers of one network, with the swarm and the link as they are.

A single answer is greedy and comes twice, without drafts and right after it with them; several are sampled, at the
same time, without drafts. All continue held-out stories. Each network keeps the engine that drafts on it: what it has
learnt of its passes is of that network.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from time import perf_counter

from shoal.client.engine.engine_settings import MAX_RUNNING, EngineSettings
from shoal.client.engine.generate import Engine
from shoal.client.trunk.model import Timing
from shoal.simulations.arena import Arena
from shoal.simulations.bench.cpu_shares import CpuMeter, CpuShares
from shoal.simulations.bench.drafting import PassCount, Run, Story, continued, story_prompts
from shoal.simulations.bench.wan_settings import Cell

NUM_PROMPT_TOKENS = 16
"""Short: decoding is what is measured."""

WARM_TOKENS = 4
WARM_DRAFTED_TOKENS = 24
"""Drafts must have been right and wrong a few times before their number is what pays."""

NUM_STORIES = 32
"""More answers than that at a time share their beginnings."""


@dataclass(frozen=True, slots=True)
class Drafted:
    """The same answer with drafts."""

    tokens_per_s: float
    ratio: float
    """To the answer without."""
    num_tokens: int
    """Without the first, which the prompt's pass brought."""
    num_runs: int
    """Passes and those that followed them."""
    num_passes: int
    """Each of them that was judged."""
    differs: bool
    """From the answer without: never, greedy."""


@dataclass(frozen=True, slots=True)
class Taken:
    """One measurement of a cell."""

    tokens_per_s: float
    """Of all answers together, without their first tokens."""
    gaps_ms: Sequence[float]
    """Between two tokens of an answer."""
    bytes_per_token: float
    """Both ways, frames and all."""
    cpu: CpuShares
    drafted: Drafted | None = None
    """Of a single answer, where there is time for it."""


@dataclass(slots=True)
class Cells:
    """What measures on one arena. Use inside `async with`."""

    arena: Arena
    plain: Engine
    prompts: Sequence[Sequence[int]]
    _drafting: dict[Cell, tuple[Engine, PassCount]] = field(default_factory=dict)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @classmethod
    def of(cls, arena: Arena) -> "Cells":
        own = arena.swarm.engine
        plain = Engine(own.trunk, own.routed_experts, own.tokenizer, settings=EngineSettings(max_running=MAX_RUNNING))
        return cls(arena, plain, story_prompts(own.tokenizer, NUM_STORIES, NUM_PROMPT_TOKENS))

    async def __aenter__(self) -> "Cells":
        self._stack.push_async_callback(self.plain.aclose)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def measure(self, cell: Cell, num_tokens: int, number: int) -> Taken:
        """One measurement, after answers that nobody measures. number: of the round; which story is told alone.

        Raises:
            ShoalError: as answers do.
        """
        await self._answers(cell, WARM_TOKENS, number)
        if cell.streams > 1:
            return (await self._measured(cell, num_tokens, number))[1]
        engine, counted = self._engine(cell)
        await continued(engine, self._story(number + 1, WARM_DRAFTED_TOKENS))
        runs, taken = await self._measured(cell, num_tokens, number)
        counted.clear()
        drafted = await continued(engine, self._story(number, num_tokens))
        return Taken(
            taken.tokens_per_s,
            taken.gaps_ms,
            taken.bytes_per_token,
            taken.cpu,
            drafts_beside(runs[0], drafted, counted),
        )

    async def _measured(self, cell: Cell, num_tokens: int, number: int) -> tuple[list[Run], Taken]:
        swarm, meter = self.arena.swarm, CpuMeter([node.pid for node in self.arena.nodes])
        before = swarm.traffic
        runs = await self._answers(cell, num_tokens, number)
        after, began, ended = swarm.traffic, min(run.times_s[0] for run in runs), max(run.times_s[-1] for run in runs)
        carried = after.bytes_sent + after.bytes_received - before.bytes_sent - before.bytes_received
        return runs, Taken(
            tokens_per_s=cell.streams * (num_tokens - 1) / (ended - began),
            gaps_ms=tuple(gap for run in runs for gap in run.gaps_ms),
            bytes_per_token=carried / (cell.streams * (num_tokens + NUM_PROMPT_TOKENS - 1)),
            cpu=meter.shares(),
        )

    async def _answers(self, cell: Cell, num_tokens: int, number: int) -> list[Run]:
        if cell.streams == 1:
            return [await continued(self.plain, self._story(number, num_tokens))]
        stories = (
            Story(self.prompts[place % len(self.prompts)], num_tokens, temperature=1.0, seed=place)
            for place in range(cell.streams)
        )
        return await asyncio.gather(*(continued(self.plain, story) for story in stories))

    def _story(self, number: int, num_tokens: int) -> Story:
        return Story(self.prompts[number % len(self.prompts)], num_tokens)

    def _engine(self, cell: Cell) -> tuple[Engine, PassCount]:
        if cell not in self._drafting:
            own, counted = self.arena.swarm.engine, PassCount()
            timing = Timing(0, perf_counter, counted)
            engine = Engine(own.trunk, own.routed_experts, own.tokenizer, timing=timing, drafter=own.drafter)
            self._stack.push_async_callback(engine.aclose)
            self._drafting[cell] = engine, counted
        return self._drafting[cell]


def drafts_beside(plain: Run, drafted: Run, counted: PassCount) -> Drafted:
    return Drafted(
        drafted.tokens_per_s,
        drafted.tokens_per_s / plain.tokens_per_s,
        len(drafted.tokens) - 1,
        drafted.num_runs - 1,
        counted.num_passes,
        drafted.ids != plain.ids,
    )
