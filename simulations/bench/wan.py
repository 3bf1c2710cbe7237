"""Decoding over networks: `make bench-wan`. Needs root, for network namespaces.

Node processes and the client each in a namespace of its own, joined by the relay of `simulations/wan`; TCP's congestion
control is set in every one of them. One swarm a format of activations; its links change from cell to cell, and before
each cell an answer passes unmeasured, so that windows and deadlines know the link. It ends in a time that is known
before: the default in 12 minutes and the start of a swarm. The table and the JSON are written when they are complete.
"""

import asyncio
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from itertools import pairwise
from multiprocessing.context import ForkServerContext
from pathlib import Path
from time import perf_counter

from shoal.client import Sampling, Swarm
from shoal.protocol.errors import InvalidRequest, ShoalError
from shoal.simulations.arena import Arena, ArenaSettings, NetworkKind, num_experts_of, open_arena
from shoal.simulations.bench.cpu_shares import CpuMeter, CpuShares
from shoal.simulations.bench.machine import congestion_control, describe_machine, git_commit, has_idle_restart
from shoal.simulations.bench.wan_settings import Cell, WanSettings, parse
from shoal.simulations.bench.wan_table import table
from shoal.simulations.demo_model import MODEL_DIRECTORY
from shoal.simulations.fork_server import start_fork_server
from shoal.simulations.local import LocalSwarmSettings
from shoal.simulations.wan.link import Link
from shoal.simulations.wan.namespace import why_no_namespaces

WARM_TOKENS = 4
NUM_PROMPT_TOKENS = 8
"""Short: decoding is what is measured."""


@dataclass(frozen=True, slots=True)
class Taken:
    """One measurement of a cell."""

    tokens_per_s: float
    """Of all answers together, without their first tokens."""
    token_ms: tuple[float, ...]
    bytes_per_token: float
    """Both ways, frames and all."""
    cpu: CpuShares


async def bench_wan(context: ForkServerContext, settings: WanSettings) -> dict[str, object]:
    """Measure every cell.

    Raises:
        InvalidRequest: nothing to measure, or what this kernel does not have. ShoalError: whatever nodes and swarm
        raise; an answer that fails is told in its cell.
    """
    settings.check()
    swarm = LocalSwarmSettings(MODEL_DIRECTORY, settings.nodes, settings.replicas)
    num_experts = await num_experts_of(swarm, None)
    rows: list[dict[str, object]] = []
    num_layers, started = 0, perf_counter()
    until = asyncio.get_running_loop().time() + 60 * settings.minutes
    for activations in settings.activations:
        arena_settings = ArenaSettings(
            swarm, Link(), NetworkKind.NAMESPACES,
            activations=activations, congestion_control=settings.congestion_control,
        )  # fmt: skip
        async with open_arena(context, arena_settings, num_experts, lambda _: None) as arena:
            num_layers = len(arena.swarm.coverage())
            tcp = {"congestion_control": congestion_control(), "tcp_slow_start_after_idle": has_idle_restart()}
            rows += [{"activations": activations} | row for row in await _all_cells(arena, settings, until)]
    return {
        "machine": describe_machine(),
        "commit": git_commit(),
        "tcp": tcp,
        "moe_layers": num_layers,
        "nodes": settings.nodes,
        "tokens": settings.tokens,
        "rounds": settings.rounds,
        "seconds": perf_counter() - started,
        "rows": rows,
    }


async def _all_cells(arena: Arena, settings: WanSettings, until: float) -> list[dict[str, object]]:
    """until: the loop's time after which nothing is measured any more."""
    taken: dict[Cell, list[Taken]] = {cell: [] for cell in settings.cells()}
    failures: dict[Cell, list[str]] = {cell: [] for cell in taken}
    for _ in range(settings.rounds):
        for cell in taken:
            now = asyncio.get_running_loop().time()
            if now >= until:
                break
            _set_links(arena, cell.link)
            try:
                async with asyncio.timeout_at(min(until, now + settings.cell_s)):
                    await _measure(arena, cell.streams, WARM_TOKENS)
                    taken[cell].append(await _measure(arena, cell.streams, settings.tokens))
            except (ShoalError, TimeoutError) as error:
                failures[cell].append(type(error).__name__)
    num_layers = len(arena.swarm.coverage())
    return [_summary(cell, taken[cell], failures[cell], num_layers) for cell in taken]


def _set_links(arena: Arena, link: Link) -> None:
    """Of all nodes and of the client."""
    if arena.network is None:
        raise InvalidRequest("links can change only where there are namespaces")
    for host in arena.network.hosts:
        arena.network.set_link(host.index, link)


async def _measure(arena: Arena, num_streams: int, num_tokens: int) -> Taken:
    swarm, meter = arena.swarm, CpuMeter([node.pid for node in arena.nodes])
    before = swarm.traffic
    times = await asyncio.gather(*(_answer(swarm, place, num_tokens) for place in range(num_streams)))
    after, began, ended = swarm.traffic, min(each[0] for each in times), max(each[-1] for each in times)
    carried = after.bytes_sent + after.bytes_received - before.bytes_sent - before.bytes_received
    return Taken(
        tokens_per_s=num_streams * (num_tokens - 1) / (ended - began),
        token_ms=tuple((later - earlier) * 1000 for each in times for earlier, later in pairwise(each)),
        bytes_per_token=carried / (num_streams * (num_tokens + NUM_PROMPT_TOKENS - 1)),
        cpu=meter.shares(),
    )


async def _answer(swarm: Swarm, place: int, num_tokens: int) -> list[float]:
    """When each token came."""
    vocab_size = swarm.vocab_size
    prompt = [(place * 7919 + i * 104_729) % vocab_size for i in range(NUM_PROMPT_TOKENS)]
    sampling = Sampling(temperature=1.0, seed=place, max_tokens=num_tokens, ignore_eos=True)
    times: list[float] = []
    async with aclosing(swarm.stream(prompt, sampling)) as tokens:
        async for _ in tokens:
            times.append(perf_counter())
    return times


def _summary(cell: Cell, taken: Sequence[Taken], failures: Sequence[str], num_layers: int) -> dict[str, object]:
    """Medians, with the least and the most of the rounds. `floor_ms`: what round trips alone take."""
    fields = asdict(cell) | {"floor_ms": num_layers * cell.rtt_ms, "failures": list(failures)}
    if not taken:
        return fields
    rates, times = sorted(each.tokens_per_s for each in taken), sorted(ms for each in taken for ms in each.token_ms)
    return fields | {
        "tokens_per_s": statistics.median(rates),
        "tokens_per_s_range": [rates[0], rates[-1]],
        "token_ms": statistics.median(times),
        "token_ms_p99": times[min(len(times) - 1, len(times) * 99 // 100)],
        "bytes_per_token": statistics.median(each.bytes_per_token for each in taken),
        "client_cores": statistics.median(each.cpu.client for each in taken),
        "nodes_cores": statistics.median(each.cpu.nodes for each in taken),
        "other_cores": statistics.median(each.cpu.others for each in taken),
    }


def write(result: Mapping[str, object], out: Path) -> None:
    """Both forms of the result, in a folder."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(table(result) + "\n", encoding="utf-8")
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Measure, or say why this machine cannot."""
    said = parse(sys.argv[1:])
    if reason := why_no_namespaces():
        print(f"bench-wan is skipped, no network namespaces: {reason}", file=sys.stderr)
        return 0
    try:
        result = asyncio.run(bench_wan(start_fork_server(), said.settings))
    except ShoalError as error:
        print(f"bench-wan: {error}", file=sys.stderr)
        return 1
    write(result, said.out)
    print(json.dumps(result, indent=1) if said.as_json else table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
