"""What many streams get in all from one client: tokens per second of 1, 8, 32, … concurrent answers through a swarm.

Real node processes and one client, or several, on loopback or on an emulated network (namespaces and the relay where
root allows, else delay in the client's channels); the answers continue held-out stories and differ in seed. Every round
measures every number of streams, so that a busy machine slows all of them alike and the ratio to one stream of the same
round holds. Beside the rates stand how busy the cores were and where a pass's time went.
"""

import asyncio
import statistics
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from multiprocessing.context import ForkServerContext
from time import perf_counter

from shoal.client import Sampling, Swarm
from shoal.client.engine.engine_settings import EngineSettings
from shoal.client.engine.generate import Engine
from shoal.client.trunk.model import Timing
from shoal.protocol.errors import InvalidRequest
from shoal.simulations.arena import Arena, ArenaSettings, NetworkKind, num_experts_of, open_arena
from shoal.simulations.bench.cpu_shares import CpuMeter, CpuShares
from shoal.simulations.bench.machine import congestion_control, describe_machine, git_commit
from shoal.simulations.bench.pass_budget import Budget, PassBudget
from shoal.simulations.demo_model.held_out import held_out_stories
from shoal.simulations.local import LocalSwarmSettings
from shoal.simulations.trial import network_for
from shoal.simulations.wan.link import Link

MAX_STREAMS = 256
"""As many rows as a pass has room for beside a chunk of a prompt."""

WARM_TOKENS = 8
"""Unmeasured, of as many answers as the most that are measured: connections, deadlines, windows, packed experts."""


@dataclass(frozen=True, slots=True)
class ThroughputSettings:
    """What is measured."""

    swarm: LocalSwarmSettings
    streams: Sequence[int] = (1, 8, 32)
    tokens: int = 64
    """Per answer."""
    rounds: int = 5
    dtype: str = "fp32"
    trunk_format: str = "dense"
    link: Link = Link()  # noqa: RUF009  # frozen
    """Of every machine, the client's too."""
    congestion_control: str = "reno"
    """TCP's, in namespaces."""
    clients: int = 1
    """Who share the streams, all in this process."""
    prompt_tokens: int = 16
    """Short: decoding is what is measured, and a prompt's chunk delays the streams that have begun."""
    groups: Sequence[int | None] = (None,)
    """Of streams that overlap (`EngineSettings.decode_groups`), each number measured in turn; None: as an engine finds
    by itself. Its trials are part of the measurement."""

    def cells(self) -> "list[Cell]":
        """Everything that a round measures, in its order."""
        return [Cell(streams, groups) for streams in self.streams for groups in self.groups]


@dataclass(frozen=True, slots=True)
class Cell:
    """Some streams at a time, in so many groups."""

    streams: int
    groups: int | None


@dataclass(frozen=True, slots=True)
class Round:
    """One measurement of some streams at a time."""

    tokens_per_s: float
    """Of all answers together, prompts included in the time."""
    token_ms: float
    """Median time between two tokens of an answer."""
    token_ms_p99: float
    together_ms: float
    """Median time between two tokens while all answers come, none still reads its prompt and none has ended; 0: there
    was no such time."""
    slowest_stream_ms: float
    """The median time between two tokens of the stream that had the longest."""
    rows_per_pass: float
    waves_per_pass: float
    dispatches_per_token: float
    client_cores: float
    """Cores that were busy, on average."""
    nodes_cores: float
    """Of all nodes together."""
    other_cores: float
    """The relay, p2pd, the kernel's part of the traffic, and whatever the machine does besides."""
    requests_per_call: float
    """Requests that share a call of a holder's kernel, of one client or several."""
    budget_ms: dict[str, float]
    """Of a pass; see `Budget`."""


async def bench_throughput(context: ForkServerContext, settings: ThroughputSettings) -> dict[str, object]:
    """Measure every number of streams, `rounds` times in turn.

    Raises:
        InvalidRequest: numbers of streams out of 1..256, or what this machine cannot do. ShoalError: whatever nodes,
        swarm or model raise.
    """
    if not settings.streams or not 1 <= min(settings.streams) <= max(settings.streams) <= MAX_STREAMS:
        raise InvalidRequest(f"streams are {list(settings.streams)}, expected numbers in 1..{MAX_STREAMS}")
    if settings.tokens < 2 or min(settings.rounds, settings.clients, settings.prompt_tokens) < 1 or not settings.groups:
        raise InvalidRequest("expected two tokens or more, a round, a client and a prompt's token")
    for groups in settings.groups:
        EngineSettings(decode_groups=groups)  # refuses what cannot be
    network, reason = network_for(settings.link)
    rounds: list[dict[Cell, Round]] = []
    async with _bench(context, settings, network) as bench:
        for groups in settings.groups:
            await bench.answers(Cell(max(settings.streams), groups), WARM_TOKENS)
        for _ in range(settings.rounds):
            rounds.append({cell: await bench.round(cell) for cell in settings.cells()})
    return {
        "machine": describe_machine(),
        "commit": git_commit(),
        "congestion_control": settings.congestion_control
        if network is NetworkKind.NAMESPACES
        else congestion_control(),
        "network": network.value,
        "network_reason": reason,
        "link": asdict(settings.link),
        "dtype": settings.dtype,
        "trunk_format": settings.trunk_format,
        "num_nodes": settings.swarm.num_nodes,
        "replicas": settings.swarm.replicas,
        "clients": settings.clients,
        "tokens": settings.tokens,
        "prompt_tokens": settings.prompt_tokens,
        "rounds": settings.rounds,
        "streams": [summary(cell, rounds) for cell in settings.cells()],
    }


@dataclass(frozen=True, slots=True)
class _Bench:
    """A swarm and its clients, the prompts, and who counts."""

    arena: Arena
    engines: Mapping[int | None, Sequence[Engine]]
    """Of every client, by the number of groups."""
    budget: PassBudget
    prompts: Sequence[Sequence[int]]
    tokens: int

    async def round(self, cell: Cell) -> Round:
        """One measurement, the streams dealt to the clients in turn."""
        requests, calls = await self._served()
        before, meter = self.budget.now(), CpuMeter([node.pid for node in self.arena.nodes])
        started = perf_counter()
        times = await self.answers(cell, self.tokens)
        seconds, shares, budget = perf_counter() - started, meter.shares(), self.budget.now().since(before)
        requests_after, calls_after = await self._served()
        per_call = (requests_after - requests) / max(1, calls_after - calls)
        return _round(times, seconds, self.tokens, budget, shares, per_call)

    async def answers(self, cell: Cell, num_tokens: int) -> list[list[float]]:
        """When each token of each answer came."""
        engines = self.engines[cell.groups]
        return await asyncio.gather(
            *(
                _answer(engines[place % len(engines)], self.prompts[place], place, num_tokens)
                for place in range(cell.streams)
            )
        )

    async def _served(self) -> tuple[int, int]:
        """Requests that all nodes have answered so far, and calls of their kernels."""
        metrics = [await node.metrics() for node in self.arena.nodes]
        return sum(each.requests_served for each in metrics), sum(each.kernel_calls for each in metrics)


@asynccontextmanager
async def _bench(
    context: ForkServerContext, settings: ThroughputSettings, network: NetworkKind
) -> AsyncIterator[_Bench]:
    budget = PassBudget()
    arena_settings = ArenaSettings(
        settings.swarm,
        settings.link,
        network,
        dtype=settings.dtype,
        congestion_control=_congestion_control(settings, network),
        trunk_format=settings.trunk_format,
    )
    num_experts = await num_experts_of(settings.swarm, None)
    async with AsyncExitStack() as stack:
        opening = open_arena(context, arena_settings, num_experts, lambda _: None, budget)
        arena = await stack.enter_async_context(opening)
        swarms = [arena.swarm]
        for _ in range(settings.clients - 1):
            swarms.append(await stack.enter_async_context(arena.join_another(budget)))
        engines: dict[int | None, list[Engine]] = {}
        for groups in settings.groups:
            engines[groups] = [_engine(swarm.engine, settings, groups, budget) for swarm in swarms]
            for engine in engines[groups]:
                stack.push_async_callback(engine.aclose)
        prompts = _prompts(arena.swarm, max(settings.streams), settings.prompt_tokens)
        yield _Bench(arena, engines, budget, prompts, settings.tokens)


def _engine(shared: Engine, settings: ThroughputSettings, groups: int | None, budget: PassBudget) -> Engine:
    """An engine on a client's trunk and experts, of so many groups."""
    limits = EngineSettings(max_running=max(settings.streams), decode_groups=groups)
    timing = Timing(0, perf_counter, budget)
    return Engine(shared.trunk, shared.routed_experts, shared.tokenizer, settings=limits, timing=timing)


def _congestion_control(settings: ThroughputSettings, network: NetworkKind) -> str:
    """What is set; empty: nothing, for it would be the whole machine's."""
    return settings.congestion_control if network is NetworkKind.NAMESPACES else ""


def _prompts(swarm: Swarm, count: int, num_tokens: int) -> list[list[int]]:
    """Beginnings of held-out stories; where there are more answers than stories, what comes next in them. Prompts that
    are longer than stories go on with the next story, and answers that begin in one place differ by their seeds."""
    if swarm.tokenizer is None:
        raise InvalidRequest("the model has no tokenizer")
    stories = [swarm.tokenizer.encode(story.plain) for story in held_out_stories()]
    parts = [story[at : at + num_tokens] for at in range(0, max(map(len, stories)), num_tokens) for story in stories]
    whole = [part for part in parts if len(part) == num_tokens]
    return whole[:count] if len(whole) >= count else _joined(stories, count, num_tokens)


def _joined(stories: Sequence[list[int]], count: int, num_tokens: int) -> list[list[int]]:
    """Stories one after another, each prompt from the beginning of another one on."""
    rounds = 1 + -(-num_tokens // min(map(len, stories)))
    order = [story for _ in range(rounds) for story in stories]
    return [
        [token for story in order[at % len(stories) :] for token in story][:num_tokens] for at in range(count)
    ]  # fmt: skip


async def _answer(engine: Engine, prompt: Sequence[int], seed: int, num_tokens: int) -> list[float]:
    sampling = Sampling(temperature=1.0, seed=seed, max_tokens=num_tokens, ignore_eos=True)
    times: list[float] = []
    async with aclosing(engine.stream(prompt, sampling)) as tokens:
        async for _ in tokens:
            times.append(perf_counter())
    return times


def _round(
    times: Sequence[Sequence[float]], seconds: float, tokens: int, budget: Budget, cpu: CpuShares, per_call: float
) -> Round:
    gaps = [[1000 * (later - earlier) for earlier, later in pairwise(each)] for each in times]
    gaps_ms, num_tokens = sorted(gap for each in gaps for gap in each), len(times) * tokens
    return Round(
        tokens_per_s=num_tokens / seconds,
        token_ms=statistics.median(gaps_ms),
        token_ms_p99=gaps_ms[min(len(gaps_ms) - 1, len(gaps_ms) * 99 // 100)],
        together_ms=together_ms(times),
        slowest_stream_ms=max(statistics.median(each) for each in gaps),
        rows_per_pass=budget.num_rows / max(1, budget.num_passes),
        waves_per_pass=budget.waves_per_pass,
        dispatches_per_token=budget.num_dispatches / num_tokens,
        client_cores=cpu.client,
        nodes_cores=cpu.nodes,
        other_cores=cpu.others,
        requests_per_call=per_call,
        budget_ms=budget.per_pass(),
    )


def together_ms(times: Sequence[Sequence[float]]) -> float:
    """See `Round.together_ms`. times: when each token of each answer came."""
    begun, ended = max(each[0] for each in times), min(each[-1] for each in times)
    between = [
        1000 * (later - earlier)
        for each in times
        for earlier, later in pairwise(each)
        if begun <= earlier and later <= ended
    ]
    return statistics.median(between) if between else 0.0


def summary(cell: Cell, rounds: Sequence[dict[Cell, Round]]) -> dict[str, object]:
    """Medians over the rounds, with the least and the most of what the benchmark is about. Ratios are to the first cell
    of the same round."""
    mine = [each[cell] for each in rounds]
    rates = sorted(each.tokens_per_s for each in mine)
    ratios = sorted(each[cell].tokens_per_s / next(iter(each.values())).tokens_per_s for each in rounds)
    fields = [asdict(each) for each in mine]
    budgets = [each.pop("budget_ms") for each in fields]
    return {
        "streams": cell.streams,
        "groups": cell.groups,
        **{name: statistics.median(each[name] for each in fields) for name in fields[0]},
        "budget_ms": {name: statistics.median(each.get(name, 0.0) for each in budgets) for name in budgets[0]},
        "tokens_per_s_range": [rates[0], rates[-1]],
        "ratio": statistics.median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
    }
