"""What speculation brings to one stream at some round-trip times: tokens per pass, tokens per second with and without.

Nodes' servers and a client in one process, joined by memory channels that delay messages by half a round trip: real
arithmetic, real clock, no sockets. Every round continues every held-out story without drafts, with one pass of them at
a time, and with as many passes following one another as pay or as was said, one after the other, so that a busy machine
slows all alike; ratios are taken story by story. Answers are compared, too.
"""

import random
import statistics
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import torch

from shoal.client.engine.engine_settings import EngineSettings
from shoal.client.engine.generate import Engine, Token
from shoal.client.engine.sampler import Sampling
from shoal.client.speculation.choice import Speculation, choose_drafter
from shoal.client.speculation.mtp_drafter import MtpDrafter
from shoal.client.trunk.checkpoint import load_mtp
from shoal.client.trunk.local_experts import LocalExperts
from shoal.client.trunk.model import UNTIMED, Timing
from shoal.experts.choose_backend import KernelChoice, choose_backend
from shoal.experts.worker import ComputeWorker
from shoal.node.holdings.assignment import parse_holding
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.events import Event, PassTaken, ignore
from shoal.protocol.ids import PeerId
from shoal.protocol.net.memory import untouched
from shoal.simulations.bench.machine import describe_machine, git_commit
from shoal.simulations.demo_model.held_out import held_out_stories
from shoal.simulations.local import holdings
from shoal.simulations.virtual.model import SimulatedModel
from shoal.simulations.virtual.soak import demo_model_in_memory
from shoal.simulations.virtual.world import open_world

PROMPT_TOKENS = 64
"""Of a story: enough to be one, and the rest of its answer is the model's own."""


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


@dataclass(frozen=True, slots=True)
class _Run:
    """One answer."""

    tokens: list[Token]
    seconds: float
    """From the first token to the last."""

    @property
    def tokens_per_s(self) -> float:
        return (len(self.tokens) - 1) / self.seconds


async def bench_decode(settings: DecodeSettings, cache_dir: Path | None = None) -> dict[str, object]:
    """Measure every round-trip time.

    Raises:
        InvalidRequest: no or negative times, no story. ShoalError: whatever nodes, swarm or model raise.
    """
    if not settings.rtts_ms or min(settings.rtts_ms) < 0 or settings.stories < 1 or settings.tokens < 2:
        raise InvalidRequest("expected round-trip times >= 0 ms, a story or more and two tokens or more")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with demo_model_in_memory(cache_dir) as model:
        rows = [await _row(model, settings, rtt_ms) for rtt_ms in settings.rtts_ms]
    return {
        "machine": describe_machine(),
        "commit": git_commit(),
        "speculate": settings.speculate.value,
        "temperature": settings.temperature,
        "width": settings.width,
        "depth": settings.depth,
        "repeats": settings.repeats,
        "nodes": settings.nodes,
        "stories": settings.stories,
        "tokens": settings.tokens,
        "rows": [asdict(row) for row in rows],
    }


async def _row(model: SimulatedModel, settings: DecodeSettings, rtt_ms: float) -> Row:
    prompts = _prompts(model, settings.stories, settings.repeats)
    passes = list[PassTaken]()
    async with _engines(model, settings, rtt_ms, passes) as engines:
        for engine in engines:  # connections, deadlines, packed experts, and how many drafts pay
            await _answer(engine, prompts[-1], settings, seed=len(prompts))
        passes.clear()
        runs = [
            [await _answer(engine, prompt, settings, seed) for engine in engines]
            for seed, prompt in enumerate(prompts[: settings.stories])
        ]
    pairs = [(base, run) for base, _, run in runs]
    tokens = [token for _, run in pairs for token in run.tokens]
    num_passes = sum(not token.was_drafted for token in tokens)
    num_drafted, num_accepted = sum(t.num_drafted for t in tokens), sum(t.was_drafted for t in tokens)
    ratios = sorted(run.tokens_per_s / base.tokens_per_s for base, run in pairs)
    over_one = sorted(run.tokens_per_s / one.tokens_per_s for _, one, run in runs)
    return Row(
        rtt_ms=rtt_ms,
        tokens_per_pass=len(tokens) / num_passes,
        drafted_per_pass=num_drafted / num_passes,
        accepted_share=num_accepted / max(1, num_drafted),
        rows_per_token=(num_passes + num_drafted) / len(tokens),
        void_share=sum(event.num_void for event in passes) / (num_passes + num_drafted),
        passes_per_token=len(passes) / len(tokens),
        tokens_per_s_without=statistics.median(base.tokens_per_s for base, _ in pairs),
        tokens_per_s_with=statistics.median(run.tokens_per_s for _, run in pairs),
        ratio=statistics.median(ratios),
        ratio_range=(ratios[0], ratios[-1]),
        ratio_over_depth_one=statistics.median(over_one),
        ratio_over_depth_one_range=(over_one[0], over_one[-1]),
        answers_differ=sum([t.id for t in a.tokens] != [t.id for t in b.tokens] for a, b in pairs),
    )


@asynccontextmanager
async def _engines(
    model: SimulatedModel, settings: DecodeSettings, rtt_ms: float, passes: list[PassTaken]
) -> AsyncIterator[tuple[Engine, Engine, Engine]]:
    """A swarm, and engines on it that take turns: without drafts, with one pass of them at a time, and as the settings
    say, whose passes are kept."""
    num_experts = model.store.spec.router.num_experts
    held = [
        parse_holding(words, model.store.spec) for words in holdings(settings.nodes, settings.replicas, num_experts)
    ]
    holding = [{layer: ids for layer, ids in each.items() if layer in model.layers} for each in held]

    def delay_s(source: PeerId, target: PeerId) -> float:
        return rtt_ms / 2000

    entropy = random.Random(0)
    worker = ComputeWorker("trunk")
    try:
        async with open_world(
            model, holding, [0.0] * len(holding), entropy, delay_s, untouched, lambda _, handler: handler, ignore,
        ) as world:  # fmt: skip
            plain = world.engine
            experts = LocalExperts(model.store, choose_backend(KernelChoice.AUTO, 1), model.rounding, worker)
            mtp = load_mtp(model.store, model.opened.trunk)
            drafter = choose_drafter(settings.speculate, MtpDrafter(mtp, experts) if mtp else None)
            kept = Timing(0, perf_counter, lambda event: _keep(event, passes))
            one, drafting = (
                Engine(
                    plain.trunk, plain.routed_experts, plain.tokenizer, timing=timing, drafter=drafter,
                    settings=EngineSettings(draft_width=settings.width, draft_depth=depth),
                )
                for depth, timing in ((1, UNTIMED), (settings.depth, kept))
            )  # fmt: skip
            try:
                yield plain, one, drafting
            finally:
                await one.aclose()
                await drafting.aclose()
    finally:
        await worker.aclose()


def _keep(event: Event, passes: list[PassTaken]) -> None:
    if isinstance(event, PassTaken) and event.num_decoding:
        passes.append(event)


def _prompts(model: SimulatedModel, count: int, repeats: bool) -> list[list[int]]:
    """Beginnings of held-out stories, and one more for warming up."""
    tokenizer = model.opened.tokenizer
    if tokenizer is None:
        raise InvalidRequest("the model has no tokenizer")
    stories = [tokenizer.encode(story.plain)[:PROMPT_TOKENS] for story in held_out_stories()]
    if len(stories) <= count:
        raise InvalidRequest(f"{count} stories asked for, {len(stories) - 1} are there")
    if repeats:
        stories = [2 * story + story[: PROMPT_TOKENS // 2] for story in stories]
    return stories[: count + 1]


async def _answer(engine: Engine, prompt: list[int], settings: DecodeSettings, seed: int) -> _Run:
    sampling = Sampling(temperature=settings.temperature, seed=seed, max_tokens=settings.tokens, ignore_eos=True)
    tokens, times = list[Token](), list[float]()
    async with aclosing(engine.stream(prompt, sampling)) as stream:
        async for token in stream:
            tokens.append(token)
            times.append(perf_counter())
    return _Run(tokens, times[-1] - times[0])


def _chosen(value: object) -> str:
    return "as many as pay" if value is None else str(value)


def table(result: dict[str, object]) -> str:
    """The result as Markdown."""
    lines = [
        f"drafts by {result['speculate']}, temperature {result['temperature']}, {result['nodes']} nodes,"
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
