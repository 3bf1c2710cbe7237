"""The parts of one run: nodes, a client, their network and directory; all real code but sockets, threads and time.

What a kernel call takes is a number here, not what it takes this machine: virtual time passes, then arithmetic runs.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from shoal.client.engine.generate import Engine
from shoal.client.routing.dispatch import MAX_WAIT_S, SwarmExperts
from shoal.client.routing.holders import Holders
from shoal.client.routing.model_id import ModelId, model_id
from shoal.client.single_process import OpenTrunk, open_trunk
from shoal.client.swarm import Swarm
from shoal.client.tally import Observers
from shoal.experts.backend import ExpertBackend, PackedExpert
from shoal.experts.choose_backend import KernelChoice, choose_backend
from shoal.experts.store import ModelStore
from shoal.experts.worker import InlineWorker
from shoal.node.admission import Admission, AdmissionLimits
from shoal.node.announcer import Announcer, Claim, Load
from shoal.node.assignment import Holding
from shoal.node.healer import Healer, HealSettings
from shoal.node.joining import Place
from shoal.node.keeper import Keeper, Pack
from shoal.node.placement import Shape
from shoal.node.server import ExpertServer, Held
from shoal.node.survey import Me
from shoal.protocol.errors import RecordRejected
from shoal.protocol.events import Observer
from shoal.protocol.identity import Identity
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.messages import Rounding, WeightFormat
from shoal.protocol.net.channel import Handler, Listener
from shoal.protocol.net.directory import Directory
from shoal.protocol.net.memory import Delay, MemoryNetwork, Tamper
from shoal.protocol.net.memory_directory import MemoryDirectory
from shoal.protocol.record_book import RecordBook

EPOCH_S = 1_790_000_000.0
"""Unix time at the start of every run."""

ROW_COST_S = 0.0002
"""Virtual seconds that an expert takes for a row: of the order of DeepSeek-V3's on a volunteer's computer."""

MAX_QUEUE_S = 1.0
"""What a node lets in: short, so that seeds with slow nodes see BUSY."""

LOAD_S = 0.05
"""Virtual seconds from disk to an expert that can be asked for: 44 MB at 1 GB/s."""

Result = TypeVar("Result")
Args = TypeVarTuple("Args")
Wrap = Callable[[int, Handler], Handler]
"""A node's handler as the network sees it; for faults in answers."""


@dataclass(frozen=True)
class SimulatedModel:
    """What all runs share: a checkpoint, its trunk, and every expert packed once."""

    store: ModelStore
    rounding: Rounding
    opened: OpenTrunk
    backend: ExpertBackend
    packed: dict[tuple[LayerId, ExpertId], PackedExpert]

    @property
    def layers(self) -> list[LayerId]:
        return [layer for layer in self.store.spec.moe_layers if layer < self.store.spec.num_layers]

    @property
    def id(self) -> ModelId:
        return model_id(self.store, self.rounding)


def load_model(store: ModelStore, directory: Path, rounding: Rounding) -> SimulatedModel:
    """Load a (small) model whole."""
    backend, spec = choose_backend(KernelChoice.AUTO, 1), store.spec
    opened = open_trunk(store, directory, rounding, InlineWorker())
    model = SimulatedModel(store, rounding, opened, backend, {})
    for layer in model.layers:
        for expert in map(ExpertId, range(spec.router.num_experts)):
            model.packed[layer, expert] = backend.pack(spec.expert, store.expert(layer, expert))
    return model


class SlowWorker:
    """Implements `Worker`: one job after another, each taking virtual time before its result is there."""

    def __init__(self, node: "SimulatedNode") -> None:
        self._node = node
        self._device = asyncio.Lock()

    async def run(self, fn: Callable[[*Args], Result], *args: *Args) -> Result:
        """See `Worker.run`."""
        self._node.num_jobs += 1
        try:
            async with self._device:
                await asyncio.sleep(ROW_COST_S * self._node.slowness)
                return fn(*args)
        finally:
            self._node.num_jobs -= 1

    async def aclose(self) -> None:
        """See `Worker.aclose`."""


def _packer(model: SimulatedModel) -> Pack:
    """A disk that has everything."""

    async def pack(layer: LayerId, expert: ExpertId) -> PackedExpert:
        await asyncio.sleep(LOAD_S)
        return model.packed[layer, expert]

    return pack


@dataclass
class SimulatedNode:
    """One node: what `node/daemon.py` composes, without a process around it. `start` and `crash` may alternate."""

    place: int
    identity: Identity
    holding: Holding
    clock_skew_s: float
    capacity: int = 0
    """Experts that it may hold to mend the swarm; 0: it never takes anything over."""
    slowness: float = 1.0
    """How many times longer than usual its kernels take."""
    admission: Admission | None = None
    server: ExpertServer | None = None
    num_jobs: int = 0
    """Kernel calls that wait or run."""
    _listener: Listener | None = None
    _announcing: asyncio.Task[None] | None = field(default=None, repr=False)
    _healing: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def is_up(self) -> bool:
        return self._listener is not None

    @property
    def is_computing(self) -> bool:
        return self.num_jobs > 0

    async def start(self, world: "World") -> None:
        """Load, listen, announce."""
        model, loop = world.model, asyncio.get_running_loop()
        experts = {layer: {e: model.packed[layer, e] for e in ids} for layer, ids in self.holding.items()}
        held = Held(world.model.id.root, model.store.weight_format, model.store.spec.expert, experts)
        self.admission = Admission(AdmissionLimits(MAX_QUEUE_S), loop.time)
        self.server = server = ExpertServer(held, model.backend, SlowWorker(self), self.admission, loop.time)
        handler = world.wrap(self.place, server.handle)
        self._listener = await world.network.listen(self.identity, handler, world.entropy.randbytes)
        claim = Claim(
            self.identity.peer, held.model_root, self.holding, held.weight_format, 0, self._listener.addresses,
            since_s=round(EPOCH_S + loop.time() + self.clock_skew_s),
        )  # fmt: skip
        directory = MemoryDirectory(world.book, self.identity, lambda: EPOCH_S + loop.time())
        skewed_clock = lambda: EPOCH_S + loop.time() + self.clock_skew_s  # noqa: E731
        announcer = Announcer(directory, claim, lambda: Load(0, 0), skewed_clock)
        with contextlib.suppress(RecordRejected):  # whose clock is an hour off stays unknown
            await announcer.announce()
        self._announcing = asyncio.create_task(announcer.run(), name=f"announcer {self.place}")
        if self.capacity:
            keeper = Keeper(held, announcer, _packer(model), self.capacity, 1)
            self._healing = asyncio.create_task(self._heal(world, keeper, directory), name=f"healer {self.place}")

    async def _heal(self, world: "World", keeper: Keeper, directory: Directory) -> None:
        whole, claim = Shape.of(world.model.store.spec), keeper.announcer.claim
        shape = replace(whole, layers=tuple(world.model.layers))  # without the MTP layers, which are not simulated
        me = Me(claim.peer, claim.since_s, WeightFormat(claim.weight_format), claim.zone)
        clock = lambda: EPOCH_S + asyncio.get_running_loop().time() + self.clock_skew_s  # noqa: E731
        place = Place(shape, me, self.capacity, directory, keeper.announcer, world.entropy.random, clock)
        await Healer(place, keeper, {}, world.heal).run()

    async def crash(self, network: MemoryNetwork) -> None:
        """The process is gone: nothing is withdrawn, nobody is told."""
        network.kill(self.identity.peer)
        await self._end()

    async def _end(self) -> None:
        for task in (self._announcing, self._healing):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        if self._listener is not None:
            await self._listener.aclose()
        if self.server is not None:
            await self.server.aclose()
        self._listener = self._announcing = self._healing = self.admission = self.server = None

    async def aclose(self) -> None:
        """End it at the end of a run."""
        await self._end()


@dataclass
class World:
    """Everything of one run."""

    model: SimulatedModel
    entropy: random.Random
    """Keys, nonces, probes: all randomness of the protocol itself."""
    network: MemoryNetwork
    book: RecordBook
    wrap: Wrap
    nodes: list[SimulatedNode]
    heal: HealSettings
    max_wait_s: float
    """How long the client waits for experts that nobody holds."""
    peer: PeerId = field(init=False)
    """The client's."""
    holders: Holders = field(init=False)
    engine: Engine = field(init=False)
    swarm: Swarm = field(init=False)

    async def join(self, observers: Observers) -> None:
        """The client enters."""
        loop, model = asyncio.get_running_loop(), self.model
        identity = Identity.from_seed(self.entropy.randbytes(32))
        self.peer = identity.peer
        directory = MemoryDirectory(self.book, identity, lambda: EPOCH_S + loop.time())
        connector = self.network.connector(identity, self.entropy.randbytes)
        self.holders = Holders(
            directory,
            connector,
            model.store.manifest,
            model.id,
            model.layers,
            observers,
            self.entropy.choice,
            loop.time,
            self.entropy.random,
        )
        await self.holders.start()
        experts = SwarmExperts(self.holders, model.id, observers, loop.time, self.entropy.random, self.max_wait_s)
        self.engine = Engine(model.opened.trunk, experts, model.opened.tokenizer)
        self.swarm = Swarm(self.engine, self.holders, model.id, model.layers, observers, loop.time)


@asynccontextmanager
async def open_world(
    model: SimulatedModel,
    holdings: Sequence[Holding],
    skews_s: Sequence[float],
    entropy: random.Random,
    delay_s: Delay,
    tamper: Tamper,
    wrap: Wrap,
    observe: Observer,
    capacities: Sequence[int] = (),
    heal: HealSettings = HealSettings(),  # noqa: B008  # frozen
    max_wait_s: float = MAX_WAIT_S,
) -> AsyncIterator[World]:
    """Start one node per holding, and a client that has joined them; end all of them. capacities: experts that each
    node may hold to mend the swarm; empty: none takes anything over."""
    nodes = [
        SimulatedNode(place, Identity.from_seed(entropy.randbytes(32)), holding, skew_s)
        for place, (holding, skew_s) in enumerate(zip(holdings, skews_s, strict=True))
    ]
    for node, capacity in zip(nodes, capacities, strict=False):
        node.capacity = capacity
    world = World(model, entropy, MemoryNetwork(delay_s, tamper), RecordBook(), wrap, nodes, heal, max_wait_s)
    try:
        for node in nodes:
            await node.start(world)
        await world.join(Observers(observe))
        yield world
    finally:
        if hasattr(world, "engine"):
            await world.engine.aclose()
        if hasattr(world, "holders"):
            await world.holders.aclose()
        for node in nodes:
            await node.aclose()
