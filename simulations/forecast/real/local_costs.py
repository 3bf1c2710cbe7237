"""What an exchange costs on this machine beside the network: a swarm of one node and of two, without delay or limit.

The clock says how long, the processor time of each process says who spent it. Pauses before each layer tell how much
more it is after waiting: what was idle finds cold caches and a sleeping core.
"""

import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext

from shoal.client.engine.generate import Engine
from shoal.protocol.errors import InvalidRequest
from shoal.simulations.arena import Arena, ArenaSettings, NetworkKind, open_arena
from shoal.simulations.demo_model import MODEL_DIRECTORY
from shoal.simulations.forecast.real.clocks import CpuMeter, Paused, decode, prefill_s
from shoal.simulations.forecast.real.networks import CALIBRATED, PAUSES_MS, Shape
from shoal.simulations.forecast.real.single import CHUNK, MANY, NUM_TOKENS, NUM_WARM
from shoal.simulations.local import LocalSwarmSettings
from shoal.simulations.wan.link import Link

CONGESTION_CONTROL = "reno"
"""In every namespace: BBR paces small exchanges to 1.6 round trips (docs/PERFORMANCE.md)."""

CLIENT, RELAY, NODES = "client", "relay", "nodes"


@dataclass(frozen=True, slots=True)
class Sample:
    """Passes of one kind. Seconds of a pass; of the nodes, all together."""

    nodes: int
    pause_ms: float
    rows: int
    is_prompt: bool
    wall_s: float
    """Without the pauses."""
    client_s: float
    relay_s: float
    nodes_s: float


async def measure_local(
    context: ForkServerContext, num_experts: int, rounds: int, on_done: Callable[[], None]
) -> list[Sample]:
    """Start the swarms one after another and measure each; the fastest of the rounds. on_done: told after each swarm.

    Raises:
        ShoalError: what network, nodes or swarm raise.
    """
    samples = list[Sample]()
    for shape in CALIBRATED:
        async with open_arena(context, arena_settings(shape, Link()), num_experts, lambda _: None) as arena:
            samples += await _measure(arena, shape, rounds)
        on_done()
    return samples


def arena_settings(shape: Shape, link: Link) -> ArenaSettings:
    """A swarm of the demonstration model in namespaces."""
    swarm = LocalSwarmSettings(MODEL_DIRECTORY, shape.nodes, shape.replicas)
    return ArenaSettings(swarm, link, NetworkKind.NAMESPACES, congestion_control=CONGESTION_CONTROL)


async def _measure(arena: Arena, shape: Shape, rounds: int) -> list[Sample]:
    async with AsyncExitStack() as stack:
        shared = arena.swarm.engine
        paused = Paused(shared.routed_experts)
        engine = Engine(shared.trunk, paused, shared.tokenizer)
        stack.push_async_callback(engine.aclose)
        meter = CpuMeter(pids_of(arena))
        await decode(engine, 1, NUM_WARM)
        samples = list[Sample]()
        for pause_ms in PAUSES_MS:
            taken = [await _decoded(engine, paused, meter, shape, 1, pause_ms) for _ in range(rounds)]
            samples.append(_fastest(taken))
        samples.append(_fastest([await _decoded(engine, paused, meter, shape, MANY, 0.0) for _ in range(rounds)]))
        await prefill_s(engine, CHUNK, 0)
        samples.append(_fastest([await _prompt(engine, meter, shape, place) for place in range(rounds)]))
    return samples


def pids_of(arena: Arena) -> dict[str, int]:
    """Processes by name: the client, the relay, each node.

    Raises:
        InvalidRequest: there is no relay.
    """
    if arena.network is None:
        raise InvalidRequest("this arena has no network of its own")
    nodes = {f"{NODES}-{place}": node.pid for place, node in enumerate(arena.nodes)}
    return {CLIENT: os.getpid(), RELAY: arena.network.relay_pid} | nodes


async def _decoded(
    engine: Engine, paused: Paused, meter: CpuMeter, shape: Shape, streams: int, pause_ms: float
) -> Sample:
    paused.pause_s = pause_ms / 1000
    await decode(engine, streams, 3)
    paused.begin()
    meter.lap()
    taken = await decode(engine, streams, NUM_TOKENS)
    used = meter.lap()
    wall_s = taken.mean_s - paused.waited_per_pass_s if pause_ms else taken.median_s
    return _sample(shape, pause_ms, streams, False, wall_s, used, paused.num_passes)


async def _prompt(engine: Engine, meter: CpuMeter, shape: Shape, place: int) -> Sample:
    meter.lap()
    wall_s = await prefill_s(engine, CHUNK, place)
    return _sample(shape, 0.0, CHUNK, True, wall_s, meter.lap(), 1)


def _sample(
    shape: Shape, pause_ms: float, rows: int, is_prompt: bool, wall_s: float, used: dict[str, float], num_passes: float
) -> Sample:
    nodes_s = sum(time_s for name, time_s in used.items() if name.startswith(NODES))
    return Sample(
        shape.nodes,
        pause_ms,
        rows,
        is_prompt,
        wall_s,
        used[CLIENT] / num_passes,
        used[RELAY] / num_passes,
        nodes_s / num_passes,
    )


def _fastest(samples: list[Sample]) -> Sample:
    """By the clock, with its own processor times: what else runs on this machine only adds."""
    return min(samples, key=lambda each: each.wall_s)
