"""The demonstration: a story through a swarm that loses a node in mid-answer, and the proof that nothing changed.

Starts real node processes, streams, kills one holder with SIGKILL while a request of ours is in flight at it, finishes,
then computes the same tokens in this process alone and compares. Prints nothing itself: events go to a `Narrator`.
"""

import statistics
import time
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict, dataclass, field
from multiprocessing.context import ForkServerContext
from typing import Protocol

import psutil

from shoal.client import Answer, Sampling, Swarm, SwarmSettings, Token
from shoal.client.single_process import single_process_engine
from shoal.client.swarm import ROUNDINGS, Prompt
from shoal.client.trunk.linear_maker import TrunkFormat
from shoal.experts.locations import default_cache_dir
from shoal.experts.store import open_store
from shoal.experts.worker import ComputeWorker
from shoal.protocol.events import DispatchSent, Event, FailedOver, Hedged, ReplyReceived
from shoal.protocol.ids import PeerId
from shoal.simulations.local import LocalNode, LocalSwarmSettings, local_swarm


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What the demonstration shows."""

    swarm: LocalSwarmSettings
    prompt: Prompt
    sampling: Sampling
    kill_after: int | None = 16
    """Tokens after which a holder is killed; None: never."""
    dtype: str = "fp32"
    channel: str = "direct"
    trunk_format: str = "dense"
    speculate: str = "off"


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What happened. Times in milliseconds where the name says so."""

    answer: Answer
    matches_reference: bool
    killed_peer: str | None
    recovery_ms: float | None
    """The call that met the death, from its first send to the replica's answer, less the median exchange."""
    exchange_ms_p50: float
    exchange_ms_p99: float
    start_to_first_token_s: float
    """From the start of this process, imports and node processes included."""

    def as_json(self) -> dict[str, object]:
        """One flat object, the answer's fields first."""
        fields: dict[str, object] = asdict(self)
        del fields["answer"]
        return self.answer.as_json() | fields


class Narrator(Protocol):
    """Who is told what happens while it happens."""

    def hashing(self, done_bytes: int, total_bytes: int) -> None: ...
    def nodes_are_up(self, nodes: list[LocalNode]) -> None: ...
    def token(self, token: Token) -> None: ...
    def killed(self, peer: PeerId, pid: int) -> None: ...
    def checking(self) -> None: ...


@dataclass(slots=True)
class Executioner:
    """Kills the holder of the next request once told to, so that the request dies with it."""

    nodes: dict[PeerId, LocalNode]
    narrator: Narrator
    is_armed: bool = False
    killed: PeerId | None = None
    exchanges_ms: list[float] = field(default_factory=list)
    recoveries_ms: list[float] = field(default_factory=list)
    first_token_at_s: float = 0.0
    """Unix time."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, DispatchSent) and self.is_armed and event.peer in self.nodes:
            self.is_armed = False
            self.nodes[event.peer].kill()
            self.killed = event.peer
            self.narrator.killed(event.peer, self.nodes[event.peer].pid)
        elif isinstance(event, ReplyReceived):
            self.exchanges_ms.append(event.exchange_s * 1000)
        elif isinstance(event, FailedOver | Hedged) and event.peer == self.killed:
            # the kernel takes milliseconds to end a process: a replica may have overtaken it before its sockets close
            self.recoveries_ms.append(event.call_s * 1000)


async def run_demo(context: ForkServerContext, settings: DemoSettings, narrator: Narrator) -> DemoResult:
    """Run the whole demonstration.

    Raises:
        ShoalError: whatever nodes, swarm or model raise. All processes have ended either way.
    """
    num_experts = await _num_experts(settings.swarm, narrator)
    async with AsyncExitStack() as stack:
        nodes = await stack.enter_async_context(local_swarm(context, settings.swarm, num_experts))
        narrator.nodes_are_up(nodes)
        executioner = Executioner({node.info.peer: node for node in nodes}, narrator)
        join = SwarmSettings(
            settings.swarm.model,
            (nodes[0].info.invite,),
            settings.dtype,
            settings.channel,
            settings.swarm.cache_dir,
            threads=settings.swarm.threads,
            trunk_format=settings.trunk_format,
            speculate=settings.speculate,
        )
        swarm = await stack.enter_async_context(Swarm.join(join, executioner))
        prompt_ids = swarm.prompt_ids(settings.prompt)
        answer = await _stream(swarm, prompt_ids, settings, executioner)
    narrator.checking()
    reference = await _reference(settings, prompt_ids)
    return _result(answer, reference, executioner)


async def _num_experts(settings: LocalSwarmSettings, narrator: Narrator) -> int:
    """Opens the model once before the nodes do, so that a missing manifest is made once and not by every node."""
    with await open_store(settings.model, settings.cache_dir or default_cache_dir(), narrator.hashing) as store:
        return store.spec.router.num_experts


async def _stream(swarm: Swarm, prompt_ids: list[int], settings: DemoSettings, executioner: Executioner) -> Answer:
    watch = swarm.watch(prompt_ids)
    async with aclosing(swarm.stream(prompt_ids, settings.sampling)) as tokens:
        async for token in tokens:
            watch.add(token)
            executioner.first_token_at_s = executioner.first_token_at_s or time.time()
            executioner.narrator.token(token)
            if token.index + 1 == settings.kill_after:
                executioner.is_armed = True
    return watch.answer()


async def _reference(settings: DemoSettings, prompt_ids: list[int]) -> tuple[int, ...]:
    """The same tokens from one process that holds every expert."""
    worker = ComputeWorker("reference")
    try:
        rounding, swarm = ROUNDINGS[settings.dtype], settings.swarm
        trunk_format = TrunkFormat(settings.trunk_format)
        with single_process_engine(swarm.model, rounding, worker, swarm.cache_dir, trunk_format) as engine:
            return (await engine.generate(prompt_ids, settings.sampling)).token_ids
    finally:
        await worker.aclose()


def _result(answer: Answer, reference: tuple[int, ...], executioner: Executioner) -> DemoResult:
    exchanges_ms = executioner.exchanges_ms
    median = statistics.median(exchanges_ms)
    return DemoResult(
        answer=answer,
        matches_reference=answer.token_ids == reference,
        killed_peer=executioner.killed,
        recovery_ms=max(executioner.recoveries_ms) - median if executioner.recoveries_ms else None,
        exchange_ms_p50=median,
        exchange_ms_p99=statistics.quantiles(exchanges_ms, n=100)[98] if len(exchanges_ms) > 1 else median,
        start_to_first_token_s=executioner.first_token_at_s - psutil.Process().create_time(),
    )
