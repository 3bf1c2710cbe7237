"""Runs a scenario: a swarm in namespaces, an answer that goes on, the harm, and the judgement against one process."""

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from shoal.client import Sampling, Token
from shoal.protocol.errors import InvalidRequest, ShoalError
from shoal.simulations.arena import Arena, ArenaSettings, NetworkKind, num_experts_of, open_arena, single_process_tokens
from shoal.simulations.chaos.scenarios import SCENARIOS, Effort, Promise
from shoal.simulations.chronicle import Chronicle, TokenTime, median_ms, p99_ms
from shoal.simulations.local import LocalSwarmSettings
from shoal.simulations.wan.link import Link
from shoal.simulations.wan.namespace import why_no_namespaces

PROMPT = "Once upon a time there was a little frog"
SAMPLING = Sampling(
    max_tokens=1900, temperature=0.6, top_p=0.9, repetition_penalty=1.15, seed=2, ignore_eos=True
)  # as `shoal demo`; the demonstration model has room for 2048
WARM_TOKENS = 24
"""Before the first fault: the median token and every holder's round trip are known by then."""

LIMIT_S = 900.0
"""For one scenario."""

Count = Annotated[int, Meta(ge=0)]


@dataclass(frozen=True, slots=True)
class ChaosSettings:
    """On what the scenarios are run."""

    model: Path
    num_nodes: int = 6
    replicas: int = 2
    rtt_ms: float = 50.0
    effort: Effort = field(default_factory=Effort)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Times:
    """Token times, milliseconds; of less than a hundred the p99 is the worst."""

    num_tokens: Count
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class ScenarioResult:
    """What a scenario came to."""

    name: str
    title: str
    num_tokens: Count
    num_answers: Count
    lost: Count
    """Tokens that never came though others after them did, or whose answer broke off."""
    wrong: Count
    """Tokens that differ from the single process."""
    failovers: Count
    rtt_ms: float
    exchange_ms_p50: float
    num_faults: Count
    recovery_rtts: tuple[float, ...]
    """By fault: extra time of the token that it hit hardest, in round trips. Ordinary jitter is in it."""
    slow_tokens: tuple[Count, ...]
    """By fault: tokens that took a round trip or more longer than the median before."""
    promised_rtts: float | None
    """The most that was promised, the service time included; null: nothing was."""
    before: Times
    during: Times
    after: Times
    notes: tuple[str, ...]
    problem: str | None
    """What ended the answer; null: nothing."""
    elapsed_s: float
    is_kept: bool
    """Every promise was."""


@dataclass(frozen=True, slots=True)
class ChaosReport:
    """What `shoal simulate chaos --json` prints."""

    commit: str
    machine: dict[str, str | int]
    num_nodes: Count
    replicas: Count
    load: tuple[float, float]
    """The machine's load average (of a minute) at the beginning and at the end: other work makes jitter."""
    scenarios: tuple[ScenarioResult, ...]


class Answers:
    """Answers that follow each other until told to end, and what they said."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self.prompt_ids = arena.swarm.prompt_ids(PROMPT)
        self.token_ids: list[list[int]] = []
        self.lost = 0
        self.problem: str | None = None

    async def run(self) -> None:
        """Until cancelled, or until an answer breaks off."""
        try:
            while True:
                self.token_ids.append([])
                await self._arena.answer(self.prompt_ids, SAMPLING, self._take)
        except ShoalError as error:
            self.lost += 1
            self.problem = f"{type(error).__name__}: {error}"
            self._arena.chronicle.fail(error)

    def _take(self, token: Token) -> None:
        self.lost += token.index - len(self.token_ids[-1])
        self.token_ids[-1].append(token.id)


def check(names: Sequence[str], settings: ChaosSettings) -> None:
    """Before anything starts.

    Raises:
        InvalidRequest: a scenario that is none, too few nodes, or no namespaces.
    """
    if unknown := [name for name in names if name not in SCENARIOS]:
        raise InvalidRequest(f"{', '.join(unknown)}: scenarios are {', '.join(SCENARIOS)}")
    if settings.num_nodes < 6 or settings.replicas < 2:
        raise InvalidRequest("chaos needs six nodes and two replicas: a third of them goes at once")
    if reason := why_no_namespaces():
        raise InvalidRequest(f"chaos needs network namespaces: {reason}")


async def run_scenario(context: ForkServerContext, name: str, settings: ChaosSettings) -> ScenarioResult:
    """Run one.

    Raises:
        ShoalError: the swarm could not even start. A broken promise is a result and no error.
    """
    scenario, started = SCENARIOS[name], time.perf_counter()
    rtt_ms = scenario.rtt_ms or settings.rtt_ms
    swarm = LocalSwarmSettings(settings.model, settings.num_nodes, settings.replicas)
    arena_settings = ArenaSettings(
        swarm, Link(rtt_ms), NetworkKind.NAMESPACES, settings.seed, places=scenario.places
    )  # fmt: skip
    notes: Sequence[str] = ()
    async with open_arena(context, arena_settings, await num_experts_of(swarm, None), lambda _: None) as arena:
        answers, chronicle = Answers(arena), arena.chronicle
        answering = asyncio.create_task(answers.run(), name="answers")
        try:
            async with asyncio.timeout(LIMIT_S):
                await chronicle.more_tokens(WARM_TOKENS)
                notes = await scenario.act(arena, settings.effort)
                await chronicle.more_tokens(settings.effort.tokens)
        except ShoalError as error:
            answers.problem = answers.problem or f"{type(error).__name__}: {error}"
        except TimeoutError:
            answers.problem = f"not over after {LIMIT_S:.0f} s"
        finally:
            answering.cancel()
            await asyncio.wait({answering})
    wrong = await _count_wrong(arena_settings, answers)
    return _judged(name, rtt_ms, chronicle, answers, wrong, notes, time.perf_counter() - started)


async def _count_wrong(settings: ArenaSettings, answers: Answers) -> int:
    longest = max(len(ids) for ids in answers.token_ids)
    if not longest:
        return 0
    sampling = replace(SAMPLING, max_tokens=longest)
    reference = await single_process_tokens(settings, answers.prompt_ids, sampling)
    pairs = [pair for ids in answers.token_ids for pair in zip(ids, reference, strict=False)]
    return sum(token_id != expected for token_id, expected in pairs)


def _judged(
    name: str,
    rtt_ms: float,
    chronicle: Chronicle,
    answers: Answers,
    wrong: int,
    notes: Sequence[str],
    elapsed_s: float,
) -> ScenarioResult:
    extras_ms = [chronicle.extras_ms(fault) for fault in chronicle.faults]
    recovery_rtts = tuple(max(extra_ms, default=0.0) / rtt_ms for extra_ms in extras_ms)
    exchange_ms = statistics.median(chronicle.exchanges_ms) if chronicle.exchanges_ms else 0.0
    promised = _promised_rtts(SCENARIOS[name].promise, rtt_ms, exchange_ms)
    is_late = promised is not None and max(recovery_rtts, default=0.0) > promised
    return ScenarioResult(
        name=name,
        title=SCENARIOS[name].title,
        num_tokens=chronicle.num_tokens,
        num_answers=len(answers.token_ids),
        lost=answers.lost,
        wrong=wrong,
        failovers=len(chronicle.replaced),
        rtt_ms=rtt_ms,
        exchange_ms_p50=exchange_ms,
        num_faults=len(chronicle.faults),
        recovery_rtts=recovery_rtts,
        slow_tokens=tuple(sum(extra > rtt_ms for extra in extra_ms) for extra_ms in extras_ms),
        promised_rtts=promised,
        before=_times(chronicle.before()),
        during=_times(chronicle.during()),
        after=_times(chronicle.after()),
        notes=tuple(notes),
        problem=answers.problem,
        elapsed_s=elapsed_s,
        is_kept=not (answers.lost or wrong or answers.problem or is_late),
    )


def _promised_rtts(promise: Promise | None, rtt_ms: float, exchange_ms: float) -> float | None:
    if promise is None:
        return None
    return promise.round_trips + promise.services * max(exchange_ms - rtt_ms, 0.0) / rtt_ms


def _times(tokens: Sequence[TokenTime]) -> Times:
    return Times(len(tokens), median_ms(tokens), p99_ms(tokens))
