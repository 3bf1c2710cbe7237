"""Decoding over networks: `make bench-wan`. Needs root, for network namespaces.

Node processes and the client each in a namespace of its own, joined by the relay of `simulations/wan`; TCP's congestion
control is set in every one of them. One swarm a format of activations; its links change from cell to cell, and before
each cell an answer passes unmeasured, so that windows and deadlines know the link.
"""

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from multiprocessing.context import ForkServerContext
from time import perf_counter
from typing import Any, cast

from shoal.client import Sampling, Swarm
from shoal.client.settings import ACTIVATIONS
from shoal.protocol.errors import InvalidRequest, ShoalError
from shoal.simulations.arena import Arena, ArenaSettings, NetworkKind, num_experts_of, open_arena
from shoal.simulations.bench.machine import congestion_control, describe_machine, git_commit, has_idle_restart
from shoal.simulations.demo_model import MODEL_DIRECTORY
from shoal.simulations.fork_server import start_fork_server
from shoal.simulations.local import LocalSwarmSettings
from shoal.simulations.wan.link import Link
from shoal.simulations.wan.namespace import why_no_namespaces

WARM_TOKENS = 6
NUM_PROMPT_TOKENS = 8
"""Short: decoding is what is measured."""


@dataclass(frozen=True, slots=True)
class WanSettings:
    """What is measured: every combination, `rounds` times in turn."""

    rtts_ms: Sequence[float] = (0, 1, 5, 20, 50)
    streams: Sequence[int] = (1, 8, 32)
    losses: Sequence[float] = (0, 0.01)
    mbits_per_s: Sequence[float] = (1000, 100, 20)
    activations: Sequence[str] = ("exact",)
    congestion_control: str = "reno"
    tokens: int = 24
    """Of every answer."""
    rounds: int = 2
    nodes: int = 4
    replicas: int = 1
    """One: every token touches all nodes that its experts are on, and nothing is hedged."""

    def cells(self) -> Iterator["Cell"]:
        """Rates and losses first, so that a link changes as seldom as may be."""
        for mbit, loss, rtt_ms, streams in product(self.mbits_per_s, self.losses, self.rtts_ms, self.streams):
            yield Cell(rtt_ms, loss, mbit, streams)


QUICK = WanSettings(rtts_ms=(0, 20), streams=(1, 8), mbits_per_s=(100,), tokens=12, rounds=1)
"""A few minutes."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One network and a number of answers at a time."""

    rtt_ms: float
    loss: float
    mbit_per_s: float
    streams: int

    @property
    def link(self) -> Link:
        return Link(self.rtt_ms, self.loss, self.mbit_per_s * 1e6 / 8)


@dataclass(frozen=True, slots=True)
class Taken:
    """One measurement of a cell."""

    tokens_per_s: float
    """Of all answers together, without their first tokens."""
    token_ms: tuple[float, ...]
    bytes_per_token: float
    """Both ways, frames and all."""


async def bench_wan(context: ForkServerContext, settings: WanSettings) -> dict[str, object]:
    """Measure every cell.

    Raises:
        InvalidRequest: nothing to measure, or what this kernel does not have. ShoalError: whatever nodes and swarm
        raise; an answer that fails is told in its cell.
    """
    _check(settings)
    swarm = LocalSwarmSettings(MODEL_DIRECTORY, settings.nodes, settings.replicas)
    num_experts = await num_experts_of(swarm, None)
    rows: list[dict[str, object]] = []
    num_layers = 0
    for activations in settings.activations:
        arena_settings = ArenaSettings(
            swarm, Link(), NetworkKind.NAMESPACES,
            activations=activations, congestion_control=settings.congestion_control,
        )  # fmt: skip
        async with open_arena(context, arena_settings, num_experts, lambda _: None) as arena:
            num_layers = len(arena.swarm.coverage())
            tcp = {"congestion_control": congestion_control(), "tcp_slow_start_after_idle": has_idle_restart()}
            rows += [{"activations": activations} | row for row in await _all_cells(arena, settings)]
    return {
        "machine": describe_machine(),
        "commit": git_commit(),
        "tcp": tcp,
        "moe_layers": num_layers,
        "nodes": settings.nodes,
        "tokens": settings.tokens,
        "rounds": settings.rounds,
        "rows": rows,
    }


def _check(settings: WanSettings) -> None:
    lists = (settings.rtts_ms, settings.streams, settings.losses, settings.mbits_per_s, settings.activations)
    if not all(lists) or min(settings.streams) < 1 or min(settings.rounds, settings.nodes) < 1 or settings.tokens < 3:
        raise InvalidRequest("expected something of every kind, a stream or more, three tokens or more")
    if unknown := set(settings.activations) - set(ACTIVATIONS):
        raise InvalidRequest(f"activations {', '.join(sorted(unknown))}; known are {', '.join(ACTIVATIONS)}")


async def _all_cells(arena: Arena, settings: WanSettings) -> list[dict[str, object]]:
    taken: dict[Cell, list[Taken]] = {cell: [] for cell in settings.cells()}
    failures: dict[Cell, list[str]] = {cell: [] for cell in taken}
    for _ in range(settings.rounds):
        for cell in taken:
            _set_links(arena, cell.link)
            try:
                await _measure(arena.swarm, cell.streams, WARM_TOKENS)
                taken[cell].append(await _measure(arena.swarm, cell.streams, settings.tokens))
            except ShoalError as error:
                failures[cell].append(type(error).__name__)
    num_layers = len(arena.swarm.coverage())
    return [_summary(cell, taken[cell], failures[cell], num_layers) for cell in taken]


def _set_links(arena: Arena, link: Link) -> None:
    """Of all nodes and of the client."""
    if arena.network is None:
        raise InvalidRequest("links can change only where there are namespaces")
    for host in arena.network.hosts:
        arena.network.set_link(host.index, link)


async def _measure(swarm: Swarm, num_streams: int, num_tokens: int) -> Taken:
    before = swarm.traffic
    times = await asyncio.gather(*(_answer(swarm, place, num_tokens) for place in range(num_streams)))
    after, began, ended = swarm.traffic, min(each[0] for each in times), max(each[-1] for each in times)
    carried = after.bytes_sent + after.bytes_received - before.bytes_sent - before.bytes_received
    return Taken(
        tokens_per_s=num_streams * (num_tokens - 1) / (ended - began),
        token_ms=tuple((later - earlier) * 1000 for each in times for earlier, later in pairwise(each)),
        bytes_per_token=carried / (num_streams * (num_tokens + NUM_PROMPT_TOKENS - 1)),
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
    }


def table(result: dict[str, object]) -> str:
    """The result as Markdown."""
    rows = cast(list[dict[str, Any]], result["rows"])
    lines = [
        f"{result['nodes']} nodes, one holder of every expert, {result['moe_layers']} MoE layers, {result['tokens']}"
        f" tokens an answer, {result['rounds']} rounds, TCP {result['tcp']}, commit {result['commit']},"
        f" {result['machine']}",
        "",
        "| activations | Mbit/s | loss % | RTT ms | streams | tokens/s in all (range) | ms a token | p99 | floor"
        " | KB a token |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        network = f"{row['mbit_per_s']:g} | {100 * row['loss']:g} | {row['rtt_ms']:g} | {row['streams']}"
        if "tokens_per_s" not in row:
            lines.append(f"| {row['activations']} | {network} | failed: {', '.join(row['failures'])} | | | | |")
            continue
        least, most = row["tokens_per_s_range"]
        failed = f", {len(row['failures'])} failed" if row["failures"] else ""
        lines.append(
            f"| {row['activations']} | {network} | {row['tokens_per_s']:.1f} ({least:.1f}-{most:.1f}{failed})"
            f" | {row['token_ms']:.1f} | {row['token_ms_p99']:.1f} | {row['floor_ms']:g}"
            f" | {row['bytes_per_token'] / 1000:.1f} |"
        )
    return "\n".join(lines)


def numbers(words: str) -> tuple[float, ...]:
    """`0,5,20`."""
    return tuple(float(word) for word in words.split(","))


def parse(arguments: Sequence[str]) -> tuple[WanSettings, bool]:
    """What the command line says, and whether JSON is wanted."""
    parser = argparse.ArgumentParser(prog="bench-wan", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a subset of a few minutes")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rtt", type=numbers, help="milliseconds, e.g. 0,5,20")
    parser.add_argument("--streams", type=numbers, help="answers at a time, e.g. 1,8,32")
    parser.add_argument("--loss", type=numbers, help="percent, e.g. 0,1")
    parser.add_argument("--mbit", type=numbers, help="of every machine, each way, e.g. 1000,100,20")
    parser.add_argument("--activations", type=lambda words: tuple(words.split(",")), help="e.g. exact,int8,auto")
    parser.add_argument("--congestion", help="TCP's congestion control in the namespaces; default reno")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--rounds", type=int)
    said = parser.parse_args(list(arguments))
    base = QUICK if said.quick else WanSettings()
    settings = WanSettings(
        rtts_ms=said.rtt or base.rtts_ms,
        streams=tuple(int(each) for each in said.streams or base.streams),
        losses=tuple(each / 100 for each in said.loss) if said.loss else base.losses,
        mbits_per_s=said.mbit or base.mbits_per_s,
        activations=said.activations or base.activations,
        congestion_control=said.congestion or base.congestion_control,
        tokens=said.tokens or base.tokens,
        rounds=said.rounds or base.rounds,
    )
    return settings, said.json


def main() -> int:
    """Measure, or say why this machine cannot."""
    settings, as_json = parse(sys.argv[1:])
    if reason := why_no_namespaces():
        print(f"bench-wan is skipped, no network namespaces: {reason}", file=sys.stderr)
        return 0
    try:
        result = asyncio.run(bench_wan(start_fork_server(), settings))
    except ShoalError as error:
        print(f"bench-wan: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=1) if as_json else table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
