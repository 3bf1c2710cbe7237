"""What a death, a silence and slow calls cost a stream of tokens, in virtual time: no machine's noise is in it.

Every expert has two holders, one of two nodes each; a link takes 5 ms each way and up to 20 % more. The extra time of a
token is what it took beyond the median token of its run.
"""

import asyncio
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from shoal.client.engine.sampler import Sampling
from shoal.node.holdings.assignment import Holding
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.events import DispatchSent, Event, Hedged
from shoal.protocol.ids import ExpertId, PeerId
from shoal.protocol.net.channel import Handler, Reply, Request
from shoal.protocol.net.memory import untouched
from shoal.simulations.virtual.injector import BASE_DELAY_S, JITTER
from shoal.simulations.virtual.loop import run_virtual
from shoal.simulations.virtual.model import SimulatedModel
from shoal.simulations.virtual.world import World, open_world

LIMIT_S = 600.0
FAULT_AFTER = 24
"""Tokens before the fault: round trips are known by then."""

NUM_TOKENS = 32
NUM_TAIL_TOKENS = 400
STALL_SHARE, STALL_FACTOR = 0.01, 10.0
"""One call in a hundred takes ten times as long (security-and-reliability §4)."""

Fault = Callable[[World, PeerId], None]


@dataclass(frozen=True, slots=True)
class Recovery:
    """Extra time of the worst token after a fault, over many runs, in round trips of the network."""

    fault: str
    num_runs: int
    median_rtts: float
    p99_rtts: float
    worst_rtts: float
    num_slow_tokens: float
    """Mean number of tokens a run that took more than one round trip longer than the median."""


@dataclass(frozen=True, slots=True)
class Tail:
    """Token times with slow calls in them."""

    num_tokens: int
    p99_to_median: float
    hedges_per_request: float


def measure_recovery(model: SimulatedModel, fault: str, num_runs: int) -> Recovery:
    """Run the same answer `num_runs` times, each with other delays, and let the fault hit the busiest holder.

    Raises:
        InvalidRequest: an unknown fault.
    """
    if fault not in FAULTS:
        raise InvalidRequest(f"fault {fault!r} is not one of {', '.join(FAULTS)}")
    extras, slow = [], []
    for seed in range(num_runs):
        times_s = run_virtual(lambda seed=seed: _with_fault(model, seed, FAULTS[fault]), random.Random(seed), LIMIT_S)  # type: ignore[misc]
        usual_s = statistics.median(times_s)
        after = [(time_s - usual_s) / (2 * BASE_DELAY_S) for time_s in times_s[FAULT_AFTER - 1 :]]
        extras.append(max(after))
        slow.append(sum(extra > 1 for extra in after))
    extras.sort()
    p99 = extras[min(len(extras) - 1, round(0.99 * (len(extras) - 1)))]
    return Recovery(fault, num_runs, statistics.median(extras), p99, extras[-1], statistics.mean(slow))


def measure_tail(model: SimulatedModel) -> Tail:
    """A long answer while one call in a hundred stalls."""
    counts: dict[type[Event], int] = {}
    times_s = run_virtual(lambda: _with_stalls(model, counts), random.Random(0), LIMIT_S)
    ordered = sorted(times_s)
    p99_s = ordered[round(0.99 * (len(ordered) - 1))]
    hedges = counts.get(Hedged, 0) / counts[DispatchSent]
    return Tail(len(times_s), p99_s / statistics.median(times_s), hedges)


def _kill(world: World, peer: PeerId) -> None:
    world.network.kill(peer)


def _silence(world: World, peer: PeerId) -> None:
    world.network.silence(peer)


def _reset(world: World, peer: PeerId) -> None:
    world.network.reset(peer)


FAULTS: dict[str, Fault] = {"kill": _kill, "silence": _silence, "reset": _reset}
"""The process dies (SIGKILL) · nothing arrives any more and nobody is told (SIGSTOP, a cut cable) · a broken
connection."""


async def _with_fault(model: SimulatedModel, seed: int, fault: Fault) -> list[float]:
    rng = random.Random(seed)
    asked: list[PeerId] = []

    def observe(event: Event) -> None:
        if isinstance(event, DispatchSent):
            asked.append(event.peer)

    def strike(world: World) -> None:
        recent = asked[-8:]
        fault(world, max(sorted(set(recent)), key=recent.count))

    async with open_world(
        model, _pairs(model), [0.0] * 4, rng, _delay(rng), untouched, lambda _, honest: honest, observe
    ) as world:
        return await _token_times(world, NUM_TOKENS, strike)


async def _with_stalls(model: SimulatedModel, counts: dict[type[Event], int]) -> list[float]:
    rng = random.Random(0)

    def observe(event: Event) -> None:
        counts[type(event)] = counts.get(type(event), 0) + 1

    def stalling(place: int, honest: Handler) -> Handler:
        async def handle(request: Request) -> Reply:
            if rng.random() < STALL_SHARE:
                await asyncio.sleep(STALL_FACTOR * 2 * BASE_DELAY_S)
            return await honest(request)

        return handle

    async with open_world(model, _pairs(model), [0.0] * 4, rng, _delay(rng), untouched, stalling, observe) as world:
        return await _token_times(world, NUM_TAIL_TOKENS, lambda world: None)


async def _token_times(world: World, num_tokens: int, strike: Callable[[World], None]) -> list[float]:
    loop, times_s = asyncio.get_running_loop(), list[float]()
    before = loop.time()
    async for token in world.swarm.stream("Once upon a time", Sampling(max_tokens=num_tokens, ignore_eos=True)):
        times_s.append(loop.time() - before)
        before = loop.time()
        if token.index == FAULT_AFTER - 1:
            strike(world)
    return times_s[1:]  # without the first, which is the prompt's: place FAULT_AFTER - 1 meets the fault


def _pairs(model: SimulatedModel) -> list[Holding]:
    num_experts = model.store.spec.router.num_experts
    halves = (range(num_experts // 2), range(num_experts // 2, num_experts))
    return [{layer: tuple(ExpertId(expert) for expert in half) for layer in model.layers} for half in halves * 2]


def _delay(rng: random.Random) -> Callable[[PeerId, PeerId], float]:
    return lambda sender, receiver: BASE_DELAY_S * (1 + JITTER * rng.random())
