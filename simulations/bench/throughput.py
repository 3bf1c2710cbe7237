"""What many streams get in all from one client: tokens per second of 1, 2, 4, … concurrent answers through a swarm.

Real node processes on this machine and one client, as in the demonstration; the answers differ in prompt and seed.
Every round measures every number of streams, so that a busy machine slows all of them alike and the ratio to one stream
of the same round holds.
"""

import asyncio
import statistics
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from multiprocessing.context import ForkServerContext
from time import perf_counter
from typing import Any, cast

from shoal.client import Sampling, Swarm, SwarmSettings
from shoal.experts.locations import default_cache_dir
from shoal.experts.store import open_store
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.events import DispatchSent, Event, PassTaken
from shoal.simulations.bench.machine import congestion_control, describe_machine, git_commit
from shoal.simulations.local import LocalSwarmSettings, local_swarm

MAX_STREAMS = 256
"""As many rows as a pass has room for beside a chunk of a prompt."""

NUM_PROMPT_TOKENS = 16
"""Short: decoding is what is measured, and a prompt's chunk delays the streams that have begun."""


@dataclass(frozen=True, slots=True)
class ThroughputSettings:
    """What is measured."""

    swarm: LocalSwarmSettings
    streams: Sequence[int] = (1, 2, 4, 8, 16)
    tokens: int = 64
    """Per answer."""
    rounds: int = 5
    dtype: str = "fp32"
    trunk_format: str = "dense"


@dataclass(frozen=True, slots=True)
class Round:
    """One measurement of some streams at a time."""

    tokens_per_s: float
    """Of all answers together, prompts included in the time."""
    token_ms: float
    """Median time between two tokens of an answer."""
    token_ms_p99: float
    rows_per_pass: float
    dispatches_per_token: float


@dataclass(slots=True)
class Counter:
    """Counts what the client sends."""

    num_dispatches: int = 0
    num_passes: int = 0
    num_rows: int = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, DispatchSent):
            self.num_dispatches += 1
        elif isinstance(event, PassTaken):
            self.num_passes += 1
            self.num_rows += event.num_decoding + event.num_prefilled


async def bench_throughput(context: ForkServerContext, settings: ThroughputSettings) -> dict[str, object]:
    """Measure every number of streams, `rounds` times in turn.

    Raises:
        InvalidRequest: numbers of streams out of 1..256. ShoalError: whatever nodes, swarm or model raise.
    """
    if not settings.streams or not 1 <= min(settings.streams) <= max(settings.streams) <= MAX_STREAMS:
        raise InvalidRequest(f"streams are {list(settings.streams)}, expected numbers in 1..{MAX_STREAMS}")
    counter, rounds = Counter(), list[dict[int, Round]]()
    async with _swarm(context, settings, counter) as swarm:
        await _round(swarm, counter, 1, settings.tokens)  # warm: connections, deadlines, packed experts
        for _ in range(settings.rounds):
            rounds.append({count: await _round(swarm, counter, count, settings.tokens) for count in settings.streams})
    return {
        "machine": describe_machine(),
        "commit": git_commit(),
        "congestion_control": congestion_control(),
        "dtype": settings.dtype,
        "trunk_format": settings.trunk_format,
        "num_nodes": settings.swarm.num_nodes,
        "tokens": settings.tokens,
        "rounds": settings.rounds,
        "streams": [_summary(count, rounds, min(settings.streams)) for count in settings.streams],
    }


@asynccontextmanager
async def _swarm(context: ForkServerContext, settings: ThroughputSettings, counter: Counter) -> AsyncIterator[Swarm]:
    local = settings.swarm
    with await open_store(local.model, local.cache_dir or default_cache_dir(), None) as store:
        num_experts = store.spec.router.num_experts
    async with AsyncExitStack() as stack:
        nodes = await stack.enter_async_context(local_swarm(context, local, num_experts))
        join = SwarmSettings(
            local.model,
            (nodes[0].info.invite,),
            settings.dtype,
            cache_dir=local.cache_dir,
            threads=local.threads,
            trunk_format=settings.trunk_format,
            max_streams=max(settings.streams),
        )
        yield await stack.enter_async_context(Swarm.join(join, counter))


async def _round(swarm: Swarm, counter: Counter, num_streams: int, num_tokens: int) -> Round:
    before, started = Counter(counter.num_dispatches, counter.num_passes, counter.num_rows), perf_counter()
    times = await asyncio.gather(*(_answer(swarm, place, num_tokens) for place in range(num_streams)))
    total_s = perf_counter() - started
    gaps_ms = sorted(gap * 1000 for each in times for gap in each)
    return Round(
        tokens_per_s=num_streams * num_tokens / total_s,
        token_ms=statistics.median(gaps_ms),
        token_ms_p99=gaps_ms[min(len(gaps_ms) - 1, len(gaps_ms) * 99 // 100)],
        rows_per_pass=(counter.num_rows - before.num_rows) / max(1, counter.num_passes - before.num_passes),
        dispatches_per_token=(counter.num_dispatches - before.num_dispatches) / (num_streams * num_tokens),
    )


async def _answer(swarm: Swarm, place: int, num_tokens: int) -> list[float]:
    """Seconds between the tokens of one answer."""
    vocab_size = swarm.engine.trunk.config.vocab_size
    prompt = [(place * 7919 + i * 104_729) % vocab_size for i in range(NUM_PROMPT_TOKENS)]
    sampling = Sampling(temperature=1.0, seed=place, max_tokens=num_tokens, ignore_eos=True)
    times: list[float] = []
    async with aclosing(swarm.stream(prompt, sampling)) as tokens:
        async for _ in tokens:
            times.append(perf_counter())
    return [later - earlier for earlier, later in pairwise(times)]


def _summary(count: int, rounds: Sequence[dict[int, Round]], baseline: int) -> dict[str, object]:
    """Medians over the rounds, with the least and the most of what the benchmark is about."""
    mine = [each[count] for each in rounds]
    rates = sorted(each.tokens_per_s for each in mine)
    ratios = sorted(each[count].tokens_per_s / each[baseline].tokens_per_s for each in rounds)
    medians = {name: statistics.median(asdict(each)[name] for each in mine) for name in asdict(mine[0])}
    return {
        "streams": count,
        **medians,
        "tokens_per_s_range": [rates[0], rates[-1]],
        f"ratio_to_{baseline}": statistics.median(ratios),
        f"ratio_to_{baseline}_range": [ratios[0], ratios[-1]],
    }


def table(result: dict[str, object]) -> str:
    """The result as Markdown."""
    rows = cast(list[dict[str, Any]], result["streams"])
    baseline = rows[0]["streams"]
    lines = [
        f"{result['dtype']}, trunk {result['trunk_format']}, {result['num_nodes']} nodes, {result['tokens']} tokens,"
        f" {result['rounds']} rounds, commit {result['commit']}, {result['machine']}",
        "",
        f"| streams | tokens/s in all (range) | ratio to {baseline} (range) | ms per token | p99 | rows a pass"
        " | frames a token |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["tokens_per_s_range"]
        least, most = row[f"ratio_to_{baseline}_range"]
        lines.append(
            f"| {row['streams']} | {row['tokens_per_s']:.0f} ({low:.0f}-{high:.0f})"
            f" | {row[f'ratio_to_{baseline}']:.2f} ({least:.2f}-{most:.2f}) | {row['token_ms']:.1f}"
            f" | {row['token_ms_p99']:.1f} | {row['rows_per_pass']:.1f} | {row['dispatches_per_token']:.2f} |"
        )
    return "\n".join(lines)
