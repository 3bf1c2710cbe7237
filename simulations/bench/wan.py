"""Decoding over networks: `make bench-wan`. Needs root, for network namespaces.

Node processes and the client each in a namespace of its own, joined by the relay of `simulations/wan`; TCP's congestion
control is set in every one of them. First one process that holds every expert answers by itself, for the bound that a
single answer is held against. Then one swarm a shape and format of activations; its links change from cell to cell, and
before each cell an answer passes unmeasured, so that windows and deadlines know the link. It ends in a time that is
known before: the default in 12 minutes and the start of a swarm. The table and the JSON are written at the end.
"""

import asyncio
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from multiprocessing.context import ForkServerContext
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import uvloop

from shoal.client.single_process import single_process_engine
from shoal.experts.worker import ComputeWorker
from shoal.protocol.errors import InvalidRequest, ShoalError
from shoal.protocol.messages import Rounding
from shoal.simulations.arena import Arena, ArenaSettings, NetworkKind, num_experts_of, open_arena
from shoal.simulations.bench.drafting import Story, continued, story_prompts
from shoal.simulations.bench.machine import describe_machine, describe_tcp, git_commit
from shoal.simulations.bench.wan_cell import NUM_PROMPT_TOKENS, Cells, Taken
from shoal.simulations.bench.wan_settings import Cell, WanSettings, parse
from shoal.simulations.bench.wan_table import failures, table
from shoal.simulations.demo_model import MODEL_DIRECTORY
from shoal.simulations.fork_server import start_fork_server
from shoal.simulations.local import LocalSwarmSettings
from shoal.simulations.wan.link import Link
from shoal.simulations.wan.measure import measure_echo
from shoal.simulations.wan.namespace import why_no_namespaces
from shoal.simulations.wan.network import Network

NUM_ALONE = 6
"""Answers of one process by itself; the first is not measured."""

NUM_ECHOES = 50

BOUND = 1.10
"""What a single answer without drafts may take of round trips and the same machine's single process together."""


async def bench_wan(start: Callable[[], ForkServerContext], settings: WanSettings) -> dict[str, object]:
    """Measure every cell. start: what starts processes; it imports for seconds, so not before one process by itself has
    been measured.

    Raises:
        InvalidRequest: nothing to measure, or what this kernel does not have. ShoalError: whatever nodes and swarm
        raise; an answer that fails is told in its cell.
    """
    settings.check()
    started, until = perf_counter(), asyncio.get_running_loop().time() + 60 * settings.minutes
    alone_ms = await single_process_ms(settings.tokens_alone)
    context = start()
    rows: list[dict[str, Any]] = []
    num_layers, tcp, echo_ms = 0, "", dict[float, float]()
    for shape, activations in product(settings.swarms, settings.activations):
        swarm = LocalSwarmSettings(MODEL_DIRECTORY, shape.nodes, shape.replicas)
        arena_settings = ArenaSettings(
            swarm, Link(), NetworkKind.NAMESPACES,
            activations=activations, congestion_control=settings.congestion_control, speculate="auto",
        )  # fmt: skip
        num_experts = await num_experts_of(swarm, None)
        async with open_arena(context, arena_settings, num_experts, lambda _: None) as arena, Cells.of(arena) as cells:
            num_layers, tcp = len(arena.swarm.coverage()), describe_tcp()
            echo_ms = await _echoes(arena, settings) if not rows else echo_ms
            of_swarm = {"swarm": str(shape), "activations": activations}
            taken, failed = await _all_cells(cells, settings, until)
            rows += [of_swarm | summary(cell, taken[cell], failed[cell]) for cell in taken]
    return {
        "machine": describe_machine(),
        "commit": git_commit(),
        "tcp": tcp,
        "moe_layers": num_layers,
        "alone_ms": statistics.median(alone_ms),
        "alone_ms_range": [min(alone_ms), max(alone_ms)],
        "tokens": settings.tokens,
        "tokens_alone": settings.tokens_alone,
        "rounds": settings.rounds,
        "seconds": perf_counter() - started,
        "rows": [
            {"echo_ms": echo_ms.get(row["rtt_ms"])} | row | bound(row, num_layers, statistics.median(alone_ms))
            for row in rows
        ],
    }


async def single_process_ms(num_tokens: int) -> list[float]:
    """A token's time on average, of some answers by one process that holds every expert; nothing else of ours runs."""
    torch.set_num_threads(1)  # as the client of a swarm
    worker = ComputeWorker("alone")
    try:
        with single_process_engine(MODEL_DIRECTORY, Rounding.FP32, worker) as engine:
            prompts = story_prompts(engine.tokenizer, NUM_ALONE, NUM_PROMPT_TOKENS)
            runs = [await continued(engine, Story(prompt, num_tokens)) for prompt in prompts]
            await engine.aclose()
    finally:
        await worker.aclose()
    return [run.token_ms for run in runs[1:]]


async def _all_cells(
    cells: Cells, settings: WanSettings, until: float
) -> tuple[dict[Cell, list[Taken]], dict[Cell, list[str]]]:
    """What was measured of each cell, and what failed. until: the loop's time after which nothing is measured."""
    taken: dict[Cell, list[Taken]] = {cell: [] for cell in settings.cells()}
    failed: dict[Cell, list[str]] = {cell: [] for cell in taken}
    for number in range(settings.rounds):
        for cell in taken:
            now = asyncio.get_running_loop().time()
            if now >= until:
                return taken, failed
            _set_links(cells.arena, cell.link)
            num_tokens = settings.tokens_alone if cell.streams == 1 else settings.tokens
            try:
                async with asyncio.timeout_at(min(until, now + settings.cell_s)):
                    taken[cell].append(await cells.measure(cell, num_tokens, number))
            except (ShoalError, TimeoutError) as error:
                if not isinstance(error, TimeoutError) or asyncio.get_running_loop().time() < until:
                    failed[cell].append(type(error).__name__)
    return taken, failed


async def _echoes(arena: Arena, settings: WanSettings) -> dict[float, float]:
    """What the relay makes of each round trip: the median of small packets' echoes, ms."""
    echo_ms: dict[float, float] = {}
    for rtt_ms in settings.rtts_ms:
        network = _set_links(arena, Link(rtt_ms))
        echo_ms[rtt_ms] = (await asyncio.to_thread(measure_echo, network, NUM_ECHOES)).p50_ms
    return echo_ms


def _set_links(arena: Arena, link: Link) -> Network:
    """Of all nodes and of the client."""
    if arena.network is None:
        raise InvalidRequest("links can change only where there are namespaces")
    for host in arena.network.hosts:
        arena.network.set_link(host.index, link)
    return arena.network


def summary(cell: Cell, taken: Sequence[Taken], failed: Sequence[str]) -> dict[str, object]:
    """Medians, with the least and the most of the rounds."""
    fields: dict[str, object] = asdict(cell) | {"failures": list(failed), "rounds": len(taken)}
    if not taken:
        return fields
    rates, gaps = sorted(each.tokens_per_s for each in taken), sorted(ms for each in taken for ms in each.gaps_ms)
    return fields | _drafts(taken) | {
        "tokens_per_s": statistics.median(rates),
        "tokens_per_s_range": [rates[0], rates[-1]],
        "gap_ms": statistics.median(gaps),
        "gap_ms_p99": gaps[min(len(gaps) - 1, len(gaps) * 99 // 100)],
        "bytes_per_token": statistics.median(each.bytes_per_token for each in taken),
        "client_cores": statistics.median(each.cpu.client for each in taken),
        "nodes_cores": statistics.median(each.cpu.nodes for each in taken),
        "other_cores": statistics.median(each.cpu.others for each in taken),
    }  # fmt: skip


def _drafts(taken: Sequence[Taken]) -> dict[str, object]:
    """Of single answers: what drafts brought, round by round."""
    drafted = [each.drafted for each in taken if each.drafted is not None]
    if not drafted:
        return {}
    ratios, num_tokens = sorted(each.ratio for each in drafted), sum(each.num_tokens for each in drafted)
    return {
        "drafted_tokens_per_s": statistics.median(each.tokens_per_s for each in drafted),
        "drafted_ratio": statistics.median(ratios),
        "drafted_ratio_range": [ratios[0], ratios[-1]],
        "tokens_per_run": num_tokens / sum(each.num_runs for each in drafted),
        "tokens_per_pass": num_tokens / max(1, sum(each.num_passes for each in drafted)),
        "answers_differ": sum(each.differs for each in drafted),
    }


def bound(row: Mapping[str, object], num_layers: int, alone_ms: float) -> dict[str, object]:
    """Of a single answer: what its token may take, and whether it kept to that."""
    rate, rtt_ms = row.get("tokens_per_s"), row["rtt_ms"]
    if row["streams"] != 1 or not isinstance(rate, float) or not isinstance(rtt_ms, float | int):
        return {}
    bound_ms = BOUND * (num_layers * rtt_ms + alone_ms)
    return {"token_ms": 1000 / rate, "bound_ms": bound_ms, "is_kept": 1000 / rate <= bound_ms}


def write(result: Mapping[str, object], out: Path) -> None:
    """Both forms of the result, in a folder."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(table(result) + "\n", encoding="utf-8")
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Measure, or say why this machine cannot. 1: some cell failed and was not measured."""
    said = parse(sys.argv[1:])
    if reason := why_no_namespaces():
        print(f"bench-wan is skipped, no network namespaces: {reason}", file=sys.stderr)
        return 0
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as the client's verbs
            result = runner.run(bench_wan(start_fork_server, said.settings))
    except ShoalError as error:
        print(f"bench-wan: {error}", file=sys.stderr)
        return 1
    write(result, said.out)
    print(json.dumps(result, indent=1) if said.as_json else table(result))
    for line in (lost := failures(result)):
        print(f"bench-wan: {line}", file=sys.stderr)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
