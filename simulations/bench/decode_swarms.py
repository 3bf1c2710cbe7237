"""The swarms that `shoal bench decode` measures on: node processes in namespaces, or nodes in this process's memory.

Namespaces have real sockets, TLS and the relay's delays, and need root. In memory there are real arithmetic and a real
clock but no sockets: it tells what drafts bring apart from what transport costs, and works for everybody.
"""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path

from shoal.client.engine.generate import Engine
from shoal.client.speculation.choice import Speculation, choose_drafter
from shoal.client.speculation.drafter import Drafter
from shoal.client.speculation.mtp_drafter import MtpDrafter
from shoal.client.trunk.checkpoint import load_mtp
from shoal.client.trunk.local_experts import LocalExperts
from shoal.experts.choose_backend import KernelChoice, choose_backend
from shoal.experts.worker import ComputeWorker
from shoal.node.holdings.assignment import parse_holding
from shoal.protocol.events import ignore
from shoal.protocol.ids import PeerId
from shoal.protocol.net.memory import untouched
from shoal.simulations.arena import ArenaSettings, NetworkKind, num_experts_of, open_arena
from shoal.simulations.demo_model import MODEL_DIRECTORY
from shoal.simulations.local import LocalSwarmSettings, holdings
from shoal.simulations.virtual.model import SimulatedModel
from shoal.simulations.virtual.soak import demo_model_in_memory
from shoal.simulations.virtual.world import open_world
from shoal.simulations.wan.link import Link


@dataclass(frozen=True, slots=True)
class Joined:
    """A swarm with a client: an engine without drafts, and who would draft for another one on the same trunk."""

    plain: Engine
    drafter: Drafter | None


Swarms = Callable[[float], AbstractAsyncContextManager[Joined]]
"""A swarm whose round trips take so many milliseconds, for one `with`."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What all of them have in common."""

    nodes: int
    replicas: int
    speculate: Speculation
    congestion_control: str = "reno"
    """TCP's, in namespaces."""


def in_namespaces(context: ForkServerContext, shape: Shape) -> Swarms:
    """Swarms of processes. Each raises as `open_arena`."""
    swarm = LocalSwarmSettings(MODEL_DIRECTORY, shape.nodes, shape.replicas)

    @asynccontextmanager
    async def joined(rtt_ms: float) -> AsyncIterator[Joined]:
        settings = ArenaSettings(
            swarm, Link(rtt_ms), NetworkKind.NAMESPACES,
            congestion_control=shape.congestion_control, speculate=shape.speculate.value,
        )  # fmt: skip
        async with open_arena(context, settings, await num_experts_of(swarm, None), lambda _: None) as arena:
            own = arena.swarm.engine
            plain = Engine(own.trunk, own.routed_experts, own.tokenizer)
            try:
                yield Joined(plain, own.drafter)
            finally:
                await plain.aclose()

    return joined


def in_memory(shape: Shape, cache_dir: Path | None = None) -> Swarms:
    """Swarms in this process. The loop's timers are the network: run them in an `exact_loop`."""

    @asynccontextmanager
    async def joined(rtt_ms: float) -> AsyncIterator[Joined]:
        with demo_model_in_memory(cache_dir) as model:
            worker = ComputeWorker("trunk")
            try:
                async with _world(model, shape, rtt_ms) as plain:
                    yield Joined(plain, _drafter(model, shape.speculate, worker))
            finally:
                await worker.aclose()

    return joined


@asynccontextmanager
async def _world(model: SimulatedModel, shape: Shape, rtt_ms: float) -> AsyncIterator[Engine]:
    num_experts = model.store.spec.router.num_experts
    held = [parse_holding(words, model.store.spec) for words in holdings(shape.nodes, shape.replicas, num_experts)]
    holding = [{layer: ids for layer, ids in each.items() if layer in model.layers} for each in held]

    def delay_s(source: PeerId, target: PeerId) -> float:
        return rtt_ms / 2000

    entropy = random.Random(0)
    async with open_world(
        model, holding, [0.0] * len(holding), entropy, delay_s, untouched, lambda _, handler: handler, ignore
    ) as world:
        yield world.engine


def _drafter(model: SimulatedModel, choice: Speculation, worker: ComputeWorker) -> Drafter | None:
    experts = LocalExperts(model.store, choose_backend(KernelChoice.AUTO, 1), model.rounding, worker)
    mtp = load_mtp(model.store, model.opened.trunk)
    return choose_drafter(choice, MtpDrafter(mtp, experts) if mtp else None)
