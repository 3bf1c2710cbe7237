"""What speculation brings to one stream at some round-trip times: tokens per pass, tokens per second with and without.

Every round continues every held-out story without drafts, with one pass of them at a time, and with as many passes
following one another as pay or as was said, one after the other, so that a busy machine slows all alike; ratios are
taken story by story. Answers are compared, too. What network lies between is `decode_swarms.py`'s.
"""

import statistics
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import torch

from shoal.client.engine.engine_settings import EngineSettings
from shoal.client.engine.generate import Engine
from shoal.client.speculation.choice import Speculation
from shoal.client.trunk.model import UNTIMED, Timing
from shoal.protocol.errors import InvalidRequest
from shoal.simulations.bench.decode_swarms import Joined, Shape, in_memory, in_namespaces
from shoal.simulations.bench.drafting import PassCount, Run, Story, continued, story_prompts
from shoal.simulations.bench.machine import describe_machine, git_commit

PROMPT_TOKENS = 64
"""Of a story: enough to be one, and the rest of its answer is the model's own."""

IN_NAMESPACES = "node processes in namespaces, TCP reno"
IN_MEMORY = "nodes in this process, messages delayed by half a round trip"


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """What is measured."""

    rtts_ms: Sequence[float] = (0, 5, 20, 50)
    speculate: Speculation = Speculation.AUTO
    stories: int = 6
    tokens: int = 64
    temperature: float = 0.0
    nodes: int = 4
    replicas: int = 2
    threads: int = 0
    """Torch's, of nodes and client together; 0: as they are."""
    width: int | None = None
    """Drafts of a pass; None: as many as pay."""
    depth: int | None = None
    """Passes of drafts under way at a time; None: as many as pay."""
    repeats: bool = False
    """Whether a prompt is its story's beginning twice over and half of it again: text that can be guessed."""


@dataclass(frozen=True, slots=True)
class Row:
    """One round-trip time; rates and ratios are medians over the stories, ranges their least and most."""

    rtt_ms: float
    tokens_per_pass: float
    drafted_per_pass: float
    accepted_share: float
    rows_per_token: float
    """What speculation sends for a token, all rows counted, those too that were thrown away; without: 1."""
    void_share: float
    """Rows of passes that followed and were thrown away with them, of all rows."""
    passes_per_token: float
    """Passes that were judged."""
    tokens_per_s_without: float
    tokens_per_s_with: float
    ratio: float
    ratio_range: tuple[float, float]
    ratio_over_depth_one: float
    """Tokens per second by those of the same drafting where a pass of drafts begins when the last one has ended."""
    ratio_over_depth_one_range: tuple[float, float]
    answers_differ: int


async def bench_decode(
    settings: DecodeSettings, cache_dir: Path | None = None, context: ForkServerContext | None = None
) -> dict[str, object]:
    """Measure every round-trip time. context: what starts node processes, in namespaces; None: nodes are in memory, and
    delays are the running loop's (`exact_loop`).

    Raises:
        InvalidRequest: no or negative times, no story. ShoalError: whatever nodes, swarm or model raise.
    """
    if not settings.rtts_ms or min(settings.rtts_ms) < 0 or settings.stories < 1 or settings.tokens < 2:
        raise InvalidRequest("expected round-trip times >= 0 ms, a story or more and two tokens or more")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    shape = Shape(settings.nodes, settings.replicas, settings.speculate)
    swarms = in_namespaces(context, shape) if context else in_memory(shape, cache_dir)
    rows = []
    for rtt_ms in settings.rtts_ms:
        async with swarms(rtt_ms) as joined:
            rows.append(await _row(joined, settings, rtt_ms))
    return {
        "machine": describe_machine(),
        "commit": git_commit(),
        "network": IN_NAMESPACES if context else IN_MEMORY,
        "speculate": settings.speculate.value,
        "temperature": settings.temperature,
        "width": settings.width,
        "depth": settings.depth,
        "repeats": settings.repeats,
        "nodes": settings.nodes,
        "replicas": settings.replicas,
        "stories": settings.stories,
        "tokens": settings.tokens,
        "rows": [asdict(row) for row in rows],
    }


async def _row(joined: Joined, settings: DecodeSettings, rtt_ms: float) -> Row:
    prompts = story_prompts(joined.plain.tokenizer, settings.stories + 1, PROMPT_TOKENS, settings.repeats)
    stories = [
        Story(prompt, settings.tokens, settings.temperature, seed) for seed, prompt in enumerate(prompts)
    ]  # fmt: skip
    counted = PassCount()
    async with _engines(joined, settings, counted) as engines:
        for engine in engines:  # connections, deadlines, packed experts, and how many drafts pay
            await continued(engine, stories[-1])
        counted.clear()
        runs = [[await continued(engine, story) for engine in engines] for story in stories[:-1]]
    return _summary(rtt_ms, runs, counted)


def _summary(rtt_ms: float, runs: Sequence[Sequence[Run]], counted: PassCount) -> Row:
    """runs: of every story, without drafts, with one pass of them at a time, and as the settings say."""
    plain, one, drafted = zip(*runs, strict=True)
    num_tokens, num_runs = (
        sum(numbers) for numbers in zip(*((len(r.tokens), r.num_runs) for r in drafted), strict=True)
    )
    num_drafted, num_accepted = sum(run.num_drafted for run in drafted), sum(run.num_accepted for run in drafted)
    ratios = sorted(run.tokens_per_s / base.tokens_per_s for base, run in zip(plain, drafted, strict=True))
    over_one = sorted(run.tokens_per_s / base.tokens_per_s for base, run in zip(one, drafted, strict=True))
    return Row(
        rtt_ms=rtt_ms,
        tokens_per_pass=num_tokens / num_runs,
        drafted_per_pass=num_drafted / num_runs,
        accepted_share=num_accepted / max(1, num_drafted),
        rows_per_token=(num_runs + num_drafted) / num_tokens,
        void_share=counted.num_void / (num_runs + num_drafted),
        passes_per_token=counted.num_passes / num_tokens,
        tokens_per_s_without=statistics.median(run.tokens_per_s for run in plain),
        tokens_per_s_with=statistics.median(run.tokens_per_s for run in drafted),
        ratio=statistics.median(ratios),
        ratio_range=(ratios[0], ratios[-1]),
        ratio_over_depth_one=statistics.median(over_one),
        ratio_over_depth_one_range=(over_one[0], over_one[-1]),
        answers_differ=sum(a.ids != b.ids for a, b in zip(plain, drafted, strict=True)),
    )


@asynccontextmanager
async def _engines(
    joined: Joined, settings: DecodeSettings, counted: PassCount
) -> AsyncIterator[tuple[Engine, Engine, Engine]]:
    """Engines that take turns on a swarm: without drafts, with one pass of them at a time, and as the settings say,
    whose passes are counted."""
    plain = joined.plain
    one, drafting = (
        Engine(
            plain.trunk, plain.routed_experts, plain.tokenizer, timing=timing, drafter=joined.drafter,
            settings=EngineSettings(draft_width=settings.width, draft_depth=depth),
        )
        for depth, timing in ((1, UNTIMED), (settings.depth, Timing(0, perf_counter, counted)))
    )  # fmt: skip
    try:
        yield plain, one, drafting
    finally:
        await one.aclose()
        await drafting.aclose()


def _chosen(value: object) -> str:
    return "as many as pay" if value is None else str(value)


def table(result: dict[str, object]) -> str:
    """The result as Markdown."""
    lines = [
        f"{result['network']}; drafts by {result['speculate']}, temperature {result['temperature']},"
        f" {result['nodes']} nodes, {result['replicas']} holders of every expert,"
        f" width {_chosen(result['width'])}, depth {_chosen(result['depth'])},"
        f"{' prompts that repeat themselves,' if result['repeats'] else ''}"
        f" {result['stories']} held-out stories of {result['tokens']} tokens, commit {result['commit']},"
        f" {result['machine']}",
        "",
        "| RTT ms | tokens/s without | with | ratio (range over stories) | over one pass at a time | tokens a run |"
        " drafts a run | right | rows a token | of them void | passes a token | answers that differ |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in cast(list[dict[str, Any]], result["rows"]):
        (least, most), (least_over, most_over) = row["ratio_range"], row["ratio_over_depth_one_range"]
        lines.append(
            f"| {row['rtt_ms']:g} | {row['tokens_per_s_without']:.1f} | {row['tokens_per_s_with']:.1f}"
            f" | {row['ratio']:.2f} ({least:.2f}-{most:.2f})"
            f" | {row['ratio_over_depth_one']:.2f} ({least_over:.2f}-{most_over:.2f}) | {row['tokens_per_pass']:.2f}"
            f" | {row['drafted_per_pass']:.2f} | {100 * row['accepted_share']:.0f} %"
            f" | {row['rows_per_token']:.2f} | {100 * row['void_share']:.0f} % | {row['passes_per_token']:.2f}"
            f" | {row['answers_differ']} |"
        )
    return "\n".join(lines)
