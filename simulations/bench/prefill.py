"""What a long prompt costs through a swarm on a slow link, its chunks one after another and overlapping.

Real node processes on this machine and one client, whose own link (delay, rate, both ways) is made in user space. Every
round measures, one right after the other: both ways of prefilling on the link, and both without any link, which is the
time that computing takes on this machine. What no prefill can beat is the greater of that and of the time in which the
bytes that it moves cross the link.
"""

import statistics
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import asdict, dataclass, fields
from multiprocessing.context import ForkServerContext
from time import perf_counter
from typing import Any, cast

from shoal.client import Sampling, Swarm, SwarmSettings
from shoal.client.engine.engine_settings import PREFILL_AHEAD, EngineSettings
from shoal.client.engine.generate import Engine
from shoal.experts.locations import default_cache_dir
from shoal.experts.store import open_store
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.events import DispatchSent, Event
from shoal.simulations.bench.machine import describe_machine, git_commit
from shoal.simulations.exact_timers import EXACT
from shoal.simulations.local import LocalSwarmSettings, local_swarm
from shoal.simulations.wan.link import Link
from shoal.simulations.wan.shaped_channel import ShapedConnector, Ways

BYTES_PER_MBIT = 125_000


@dataclass(frozen=True, slots=True)
class PrefillSettings:
    """What is measured."""

    swarm: LocalSwarmSettings
    tokens: int = 2000
    rtt_ms: float = 20.0
    rate_mbit: float = 100.0
    """Of the client's link, each way."""
    rounds: int = 5
    ahead: int = PREFILL_AHEAD
    """Chunks under way at a time."""
    dtype: str = "fp32"


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds to a prompt's first token; `frames` and `link_s` of the overlapping prefill."""

    one_by_one_s: float
    overlapping_s: float
    compute_s: float
    """Without delay and rate, the better of both ways."""
    link_s: float
    """The bytes of the busier direction over the link's rate."""
    frames: int

    @property
    def bound_s(self) -> float:
        """What nobody can beat."""
        return max(self.link_s, self.compute_s)


@dataclass(slots=True)
class Frames:
    """Counts what the client sends."""

    count: int = 0

    def __call__(self, event: Event) -> None:
        self.count += isinstance(event, DispatchSent)


@dataclass(frozen=True, slots=True)
class _Bench:
    """A swarm, and two engines on it that take turns."""

    one_by_one: Engine
    overlapping: Engine
    ways: Ways
    frames: Frames
    prompt: Sequence[int]

    async def round(self, link: Link) -> Round:
        """Measure everything once."""
        one_by_one_s = await self._seconds(self.one_by_one, link)
        before, num_frames = dict(self.ways.num_bytes), self.frames.count
        overlapping_s = await self._seconds(self.overlapping, link)
        num_bytes = max(self.ways.num_bytes[is_out] - before[is_out] for is_out in before)
        num_frames = self.frames.count - num_frames
        compute_s = min([await self._seconds(engine, Link()) for engine in (self.one_by_one, self.overlapping)])
        link_s = num_bytes / link.rate_bytes_per_s if link.rate_bytes_per_s else 0.0
        return Round(one_by_one_s, overlapping_s, compute_s, link_s, num_frames)

    async def _seconds(self, engine: Engine, link: Link) -> float:
        self.ways.link = link
        started = perf_counter()
        sampling = Sampling(max_tokens=1, ignore_eos=True)
        async with aclosing(engine.stream(self.prompt, sampling)) as stream:
            async for _ in stream:
                return perf_counter() - started
        raise InvalidRequest("the prompt brought no token")


async def bench_prefill(context: ForkServerContext, settings: PrefillSettings) -> dict[str, object]:
    """Measure every round.

    Raises:
        InvalidRequest: no token, no round, no link that there can be. ShoalError: whatever nodes, swarm or model raise.
    """
    if settings.tokens < 1 or settings.rounds < 1:
        raise InvalidRequest("expected a token and a round or more")
    link = Link(settings.rtt_ms, rate_bytes_per_s=settings.rate_mbit * BYTES_PER_MBIT)
    async with _bench(context, settings) as bench:
        await bench.round(link)  # connections, deadlines, packed experts
        rounds = [await bench.round(link) for _ in range(settings.rounds)]
    return {
        "machine": describe_machine(),
        "commit": git_commit(),
        "dtype": settings.dtype,
        "num_nodes": settings.swarm.num_nodes,
        "tokens": settings.tokens,
        "rtt_ms": settings.rtt_ms,
        "rate_mbit": settings.rate_mbit,
        "ahead": settings.ahead,
        "rounds": [asdict(each) for each in rounds],
        **summary(rounds, settings.tokens),
    }


def summary(rounds: Sequence[Round], num_tokens: int) -> dict[str, object]:
    """Medians over the rounds, and the least and the most of each ratio."""
    names = [field.name for field in fields(Round)]
    medians = {name: statistics.median(getattr(each, name) for each in rounds) for name in names}
    ratios = {
        "ratio_to_bound_before": [each.one_by_one_s / each.bound_s for each in rounds],
        "ratio_to_bound": [each.overlapping_s / each.bound_s for each in rounds],
        "gain": [each.one_by_one_s / each.overlapping_s for each in rounds],
    }
    return {
        **medians,
        "tokens_per_s_before": num_tokens / medians["one_by_one_s"],
        "tokens_per_s": num_tokens / medians["overlapping_s"],
        **{name: statistics.median(values) for name, values in ratios.items()},
        **{f"{name}_range": [min(values), max(values)] for name, values in ratios.items()},
    }


@asynccontextmanager
async def _bench(context: ForkServerContext, settings: PrefillSettings) -> AsyncIterator[_Bench]:
    local, ways, frames = settings.swarm, Ways(Link()), Frames()
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
        )
        joining = Swarm.join(
            join, frames, wrap=lambda inner: ShapedConnector(inner, ways.link, lambda: 1.0, ways, EXACT)
        )
        shared = (await stack.enter_async_context(joining)).engine
        engines = []
        for ahead in (1, settings.ahead):
            engine_settings = EngineSettings(prefill_ahead=ahead)
            engine = Engine(shared.trunk, shared.routed_experts, shared.tokenizer, settings=engine_settings)
            stack.push_async_callback(engine.aclose)
            engines.append(engine)
        prompt = [i * 104_729 % shared.trunk.config.vocab_size for i in range(settings.tokens)]
        yield _Bench(engines[0], engines[1], ways, frames, prompt)


def table(result: dict[str, object]) -> str:
    """The result as Markdown."""
    row = cast(dict[str, Any], result)
    lines = [
        f"{row['tokens']} tokens, {row['rtt_ms']:g} ms, {row['rate_mbit']:g} Mbit/s each way, {row['num_nodes']} nodes,"
        f" {row['dtype']}, {row['ahead']} chunks under way, {len(row['rounds'])} rounds, commit {row['commit']},"
        f" {row['machine']}",
        "",
        "| chunks | s | tokens/s | x max(link, compute) (range) |",
        "|---|---|---|---|",
    ]
    for name, key, suffix in (("one by one", "one_by_one_s", "_before"), ("overlapping", "overlapping_s", "")):
        least, most = row[f"ratio_to_bound{suffix}_range"]
        lines.append(
            f"| {name} | {row[key]:.2f} | {row[f'tokens_per_s{suffix}']:.0f}"
            f" | {row[f'ratio_to_bound{suffix}']:.2f} ({least:.2f}-{most:.2f}) |"
        )
    least, most = row["gain_range"]
    lines += [
        "",
        f"link {row['link_s']:.2f} s, compute {row['compute_s']:.2f} s, {row['frames']:g} frames;"
        f" {row['gain']:.2f} ({least:.2f}-{most:.2f}) times as fast as one by one",
    ]
    return "\n".join(lines)
