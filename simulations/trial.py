"""One answer through a local swarm with the network and the deaths that a user asks for: `shoal simulate --local`.

Streams, kills, replaces the dead of a churn, then computes the same tokens in this process alone and compares. Prints
nothing itself: events go to a `Narrator`.
"""

import asyncio
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from typing import Annotated, Protocol

from msgspec import Meta

from shoal.client import Sampling, Token
from shoal.client.answer import Answer
from shoal.client.swarm import Prompt
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.ids import PeerId
from shoal.simulations.arena import Arena, ArenaSettings, NetworkKind, num_experts_of, open_arena, single_process_tokens
from shoal.simulations.chronicle import Chronicle, Fault, median_ms, p99_ms
from shoal.simulations.churn import pause_until_next_s, victims
from shoal.simulations.local import LocalNode, holdings
from shoal.simulations.wan.link import Link
from shoal.simulations.wan.namespace import why_no_namespaces

Count = Annotated[int, Meta(ge=0)]


@dataclass(frozen=True, slots=True)
class TrialSettings:
    """What is tried."""

    arena: ArenaSettings
    prompt: Prompt
    sampling: Sampling
    num_kills: int = 0
    """Nodes that die at once, `kill_after` tokens into the answer, with a request of ours at one of them."""
    kill_after: int = 16
    churn_per_hour: float = 0.0
    """Deaths per node and hour; a new node takes the place of each at once."""


@dataclass(frozen=True, slots=True)
class Kill:
    """One death. `after_tokens`: of the answer."""

    peer: str
    pid: int
    after_tokens: int
    recovery_ms: float | None
    """The call that met the death, from its first send to the replica's answer, less the median exchange; null: no
    call did."""


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What happened: the fields of `shoal demo --json`, and the network's."""

    text: str
    token_ids: tuple[int, ...]
    num_prompt_tokens: Count
    finish_reason: str
    ttft_s: float
    tokens_per_s: float
    failovers: Count
    holders_used: Count
    bytes_sent: Count
    bytes_received: Count
    model_root: str
    matches_reference: bool
    """Token for token equal to one process that holds every expert."""
    killed_peer: str | None
    """The first."""
    recovery_ms: float | None
    """The worst of `kills`."""
    exchange_ms_p50: float
    exchange_ms_p99: float
    token_ms_p50: float
    token_ms_p99: float
    kills: tuple[Kill, ...]
    network: NetworkKind
    """Where delay, loss and rate came from."""
    rtt_ms: float
    loss: float
    """Share of packets, each way."""
    rate_bytes_per_s: float | None


class Narrator(Protocol):
    """Who is told what happens while it happens."""

    def hashing(self, done_bytes: int, total_bytes: int) -> None: ...
    def nodes_are_up(self, nodes: list[LocalNode]) -> None: ...
    def token(self, token: Token) -> None: ...
    def killed(self, peer: PeerId, pid: int) -> None: ...
    def checking(self) -> None: ...


def network_for(link: Link, wants_namespaces: bool = True) -> tuple[NetworkKind, str]:
    """Which network this user gets, and why in words (empty: the best)."""
    if link == Link():
        return NetworkKind.LOOPBACK, ""
    if not wants_namespaces:
        return NetworkKind.CHANNEL, "as asked"
    reason = why_no_namespaces()
    return (NetworkKind.NAMESPACES, "") if reason is None else (NetworkKind.CHANNEL, reason)


async def run_trial(context: ForkServerContext, settings: TrialSettings, narrator: Narrator) -> TrialResult:
    """Run it.

    Raises:
        InvalidRequest: nobody would hold some expert after the deaths. ShoalError: whatever nodes, swarm or model
        raise. All processes have ended either way.
    """
    num_experts = await num_experts_of(settings.arena.swarm, narrator.hashing)
    _check(settings, num_experts)
    async with open_arena(context, settings.arena, num_experts, narrator.nodes_are_up) as arena:
        prompt_ids = arena.swarm.prompt_ids(settings.prompt)
        deaths = _Deaths(arena, narrator)
        answer = await _answer(settings, prompt_ids, deaths)
    narrator.checking()
    reference = await single_process_tokens(settings.arena, prompt_ids, settings.sampling)
    return _result(settings, answer, reference, deaths)


def _check(settings: TrialSettings, num_experts: int) -> None:
    swarm = settings.arena.swarm
    parts = holdings(swarm.num_nodes, swarm.replicas, num_experts)
    victims(parts, settings.num_kills, random.Random(settings.arena.seed))
    if settings.churn_per_hour and swarm.replicas < 2:
        raise InvalidRequest("with one replica a death leaves a gap: a churn needs two")


@dataclass(frozen=True, slots=True)
class _Death:
    """One node that was killed."""

    peer: PeerId
    pid: int
    after_tokens: int
    fault: Fault


class _Deaths:
    """Kills, and remembers whom."""

    def __init__(self, arena: Arena, narrator: Narrator) -> None:
        self.arena = arena
        self.narrator = narrator
        self.deaths: list[_Death] = []

    async def all_at_once(self, count: int, after_tokens: int) -> None:
        """Kill `count` nodes while a request is in flight at one of them."""
        if not count:
            return
        arena = self.arena
        await arena.chronicle.more_tokens(after_tokens)
        arena.chronicle.at_next_dispatch(arena.peers, lambda peer: self._kill(arena.choose(count, peer)))
        await arena.chronicle.until_dispatched()

    async def churn(self, per_hour: float) -> None:
        """Let nodes die at random times, each replaced at once, until cancelled."""
        arena = self.arena
        while per_hour:
            await asyncio.sleep(pause_until_next_s(per_hour, len(arena.nodes), arena.chance))
            (dead,) = arena.choose(1)
            self._kill([dead])
            await arena.start_in_place_of(dead)

    def _kill(self, nodes: Sequence[LocalNode]) -> None:
        fault = self.arena.kill(nodes)
        for node in nodes:
            self.deaths.append(_Death(node.info.peer, node.pid, self.arena.chronicle.num_tokens, fault))
            self.narrator.killed(node.info.peer, node.pid)


async def _answer(settings: TrialSettings, prompt_ids: Sequence[int], deaths: _Deaths) -> Answer:
    """The answer, while nodes die; an error of either ends both."""
    watch = deaths.arena.swarm.watch(prompt_ids)

    def on_token(token: Token) -> None:
        watch.add(token)
        deaths.narrator.token(token)

    killing = asyncio.create_task(deaths.all_at_once(settings.num_kills, settings.kill_after))
    churning = asyncio.create_task(deaths.churn(settings.churn_per_hour))
    answering = asyncio.create_task(deaths.arena.answer(prompt_ids, settings.sampling, on_token))
    tasks = {killing, churning, answering}
    try:
        while not answering.done():
            done, _ = await asyncio.wait(
                {answering, *(task for task in tasks if not task.done())}, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()  # raises what went wrong
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    return watch.answer()


def _result(settings: TrialSettings, answer: Answer, reference: tuple[int, ...], deaths: _Deaths) -> TrialResult:
    chronicle, arena, generation = deaths.arena.chronicle, settings.arena, answer.generation
    kills = tuple(_kill(chronicle, death) for death in deaths.deaths)
    recoveries_ms = [kill.recovery_ms for kill in kills if kill.recovery_ms is not None]
    exchanges_ms = sorted(chronicle.exchanges_ms)
    return TrialResult(
        text=generation.text,
        token_ids=generation.token_ids,
        num_prompt_tokens=generation.num_prompt_tokens,
        finish_reason=generation.finish_reason.value,
        ttft_s=generation.ttft_s,
        tokens_per_s=generation.tokens_per_s,
        failovers=answer.failovers,
        holders_used=answer.holders_used,
        bytes_sent=answer.bytes_sent,
        bytes_received=answer.bytes_received,
        model_root=answer.model_root,
        matches_reference=answer.token_ids == reference,
        killed_peer=kills[0].peer if kills else None,
        recovery_ms=max(recoveries_ms, default=None),
        exchange_ms_p50=statistics.median(exchanges_ms),
        exchange_ms_p99=exchanges_ms[round(0.99 * (len(exchanges_ms) - 1))],
        token_ms_p50=median_ms(chronicle.tokens),
        token_ms_p99=p99_ms(chronicle.tokens),
        kills=kills,
        network=arena.network,
        rtt_ms=arena.link.rtt_ms,
        loss=arena.link.loss,
        rate_bytes_per_s=arena.link.rate_bytes_per_s,
    )


def _kill(chronicle: Chronicle, death: _Death) -> Kill:
    met = [each.call_ms for each in chronicle.replaced if each.peer == death.peer and each.at >= death.fault.at]
    recovery_ms = max(met) - statistics.median(chronicle.exchanges_ms) if met else None
    return Kill(death.peer, death.pid, death.after_tokens, recovery_ms)
