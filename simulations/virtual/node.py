"""One simulated node: what `node/daemon.py` composes, without a process around it.

Handshakes, server, batcher, announcer, healer, keeper and the store of pieces are the real ones. What a kernel call or
a disk takes is a number here, not what it takes this machine: virtual time passes, then the work is done.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar, TypeVarTuple

from shoal.experts.backend import PackedExpert
from shoal.experts.pieces.encoding import decode_piece
from shoal.experts.pieces.fetching import fetch_pieces
from shoal.experts.pieces.pieces import expert_pieces
from shoal.experts.pieces.ranges import CheckpointSource
from shoal.experts.pieces.sources import FolderReader
from shoal.experts.pieces.store import PieceStore
from shoal.node.announcer import Announcer, Claim, Load
from shoal.node.holdings.assignment import Holding
from shoal.node.holdings.healer import Healer, HealSettings
from shoal.node.holdings.joining import Place
from shoal.node.holdings.keeper import Keeper, Pack
from shoal.node.holdings.placement import Shape
from shoal.node.holdings.survey import Me
from shoal.node.serving.admission import Admission, AdmissionLimits
from shoal.node.serving.batcher import Job
from shoal.node.serving.cold import ColdExperts, LatestExperts
from shoal.node.serving.server import ExpertServer, Held
from shoal.protocol.errors import CheckpointError, RecordRejected
from shoal.protocol.identity import Identity
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import WeightFormat
from shoal.protocol.net.channel import Handler, Listener
from shoal.protocol.net.directory import Directory
from shoal.protocol.net.memory import MemoryNetwork
from shoal.protocol.net.memory_directory import MemoryDirectory
from shoal.protocol.record_book import RecordBook
from shoal.simulations.virtual.memory_disk import MemoryDisk
from shoal.simulations.virtual.model import SimulatedModel

EPOCH_S = 1_790_000_000.0
"""Unix time at the start of every run."""

ROW_COST_S = 0.0002
"""Virtual seconds that an expert takes for a row: of the order of DeepSeek-V3's on a volunteer's computer."""

READ_COST_S = 0.05
"""What a request takes for which something is read from disk, before that."""

MAX_QUEUE_S = 1.0
"""What a node lets in: short, so that seeds with slow nodes see BUSY."""

LOAD_S = 0.05
"""Virtual seconds from a source to an expert that can be asked for: 44 MB at 1 GB/s."""

Result = TypeVar("Result")
Args = TypeVarTuple("Args")
Wrap = Callable[[int, Handler], Handler]
"""A node's handler as the network sees it; for faults in answers."""


@dataclass
class Surroundings:
    """What a node finds when it starts."""

    model: SimulatedModel
    entropy: random.Random
    """Keys, nonces, probes: all randomness of the protocol itself."""
    network: MemoryNetwork
    book: RecordBook
    wrap: Wrap
    heal: HealSettings


def _open_gate() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass
class SimulatedNode:
    """One node. `start` and `crash` may alternate; its disk stays."""

    place: int
    identity: Identity
    holding: Holding
    clock_skew_s: float
    capacity: int = 0
    """Experts that it may hold to mend the swarm; 0: it never takes anything over."""
    num_cached: int = 0
    """Of one that reads from its disk: experts that were read and stay in memory for a while. 0: all it has is held."""
    cold: Holding = field(default_factory=dict)
    """What it reads from its disk, if that is not all of `holding`, which makes it an anchor; none of `holding`."""
    read_cost_s: float = READ_COST_S
    """What a request takes for which something is read; its record says so."""
    slowness: float = 1.0
    """How many times longer than usual its kernels take."""
    disk: MemoryDisk = field(default_factory=MemoryDisk, repr=False)
    admission: Admission | None = None
    server: ExpertServer | None = None
    keeper: Keeper | None = None
    num_jobs: int = 0
    """Kernel calls that wait or run."""
    num_unwanted: int = 0
    """Requests that the kernel began although nobody waited for them any more."""
    num_slow: int = 0
    """Kernel calls that took longer than usual."""
    num_frozen: int = 0
    """Kernel calls that stood still for a while."""
    thawed: asyncio.Event = field(default_factory=_open_gate, repr=False)
    """Not set: the kernel stands still."""
    _changing: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)
    """Held while it starts or ends: restarts of one node may overlap."""
    _listener: Listener | None = None
    _announcing: asyncio.Task[None] | None = field(default=None, repr=False)
    _healing: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def is_up(self) -> bool:
        return self._listener is not None

    @property
    def is_computing(self) -> bool:
        return self.num_jobs > 0

    @property
    def has_lost_its_healer(self) -> bool:
        """Whether the watch over the swarm has ended while the node runs on."""
        return self._healing is not None and self._healing.done()

    async def start(self, around: Surroundings) -> None:
        """Load, listen, announce; nothing if it is up."""
        async with self._changing:
            if not self.is_up:
                await self._start(around)

    async def _start(self, around: Surroundings) -> None:
        model, loop = around.model, asyncio.get_running_loop()
        resident = self.holding if self.cold or not self.num_cached else {}
        cold = self._cold(model)
        experts = {layer: {e: model.packed[layer, e] for e in ids} for layer, ids in resident.items()}
        held = Held(model.id.root, model.store.weight_format, model.store.spec.expert, experts)
        self.admission = Admission(AdmissionLimits(MAX_QUEUE_S), loop.time)
        self.server = server = ExpertServer(
            held, model.backend, SlowWorker(self), self.admission, loop.time, cold,
            SlowWorker(self, self.read_cost_s),
        )  # fmt: skip
        handler = around.wrap(self.place, server.handle)
        self._listener = await around.network.listen(self.identity, handler, around.entropy.randbytes)
        claim = Claim(
            self.identity.peer, held.model_root, resident, held.weight_format, 0, self._listener.addresses,
            since_s=round(EPOCH_S + loop.time() + self.clock_skew_s), cold=cold.beside(resident) if cold else {},
            read_ms=round(1000 * self.read_cost_s) if cold else 0,
        )  # fmt: skip
        directory = MemoryDirectory(
            around.book, self.identity, lambda: EPOCH_S + loop.time(), lambda: EPOCH_S + loop.time() + self.clock_skew_s
        )
        announcer = Announcer(directory, claim, lambda: Load(0, 0))
        with contextlib.suppress(RecordRejected):  # whose clock is an hour off stays unknown
            await announcer.announce()
        self._announcing = asyncio.create_task(announcer.run(), name=f"announcer {self.place}")
        if self.capacity:
            self.keeper = Keeper(held, announcer, _packer(model, self.disk), self.capacity, 1, cold=cold)
            self._healing = asyncio.create_task(
                self._heal(around, self.keeper, directory), name=f"healer {self.place}"
            )  # fmt: skip

    def _cold(self, model: SimulatedModel) -> ColdExperts | None:
        if not self.num_cached:
            return None
        latest = LatestExperts(lambda *which: model.packed[which], self.num_cached, asyncio.get_running_loop().time)
        return ColdExperts(self.cold or self.holding, latest)

    async def _heal(self, around: Surroundings, keeper: Keeper, directory: Directory) -> None:
        model, claim = around.model, keeper.announcer.claim
        # without the MTP layers, which are not simulated
        shape = replace(Shape.of(model.store.spec), layers=tuple(model.layers))
        me = Me(claim.peer, claim.since_s, WeightFormat(claim.weight_format), claim.zone)
        entropy = around.entropy.random
        place = Place(shape, me, self.capacity, directory, keeper.announcer, entropy, self._wall_clock)
        await Healer(place, keeper, {}, around.heal).run()

    def _wall_clock(self) -> float:
        """Unix seconds, as wrong as this machine's clock is."""
        return EPOCH_S + asyncio.get_running_loop().time() + self.clock_skew_s

    async def crash(self, network: MemoryNetwork) -> None:
        """The process is gone: nothing is withdrawn, nobody is told."""
        network.kill(self.identity.peer)
        await self.aclose()

    async def aclose(self) -> None:
        """End it."""
        async with self._changing:
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
        self._listener = self._announcing = self._healing = self.admission = self.server = self.keeper = None


class SlowWorker:
    """Implements `Worker`: one job after another, each taking virtual time before its result is there."""

    def __init__(self, node: SimulatedNode, cost_s: float = ROW_COST_S) -> None:
        self._node = node
        self._cost_s = cost_s
        self._device = asyncio.Lock()

    async def run(self, fn: Callable[[*Args], Result], *args: *Args) -> Result:
        """See `Worker.run`."""
        self._node.num_jobs += 1
        try:
            async with self._device:
                self._node.num_unwanted += sum(map(_is_unwanted, args))
                await asyncio.sleep(self._cost_s * self._node.slowness)
                self._node.num_slow += self._node.slowness > 1
                self._node.num_frozen += not self._node.thawed.is_set()
                await self._node.thawed.wait()
                return fn(*args)
        finally:
            self._node.num_jobs -= 1

    async def aclose(self) -> None:
        """See `Worker.aclose`."""


def _packer(model: SimulatedModel, disk: MemoryDisk) -> Pack:
    """Fetches an expert's piece into the node's store as a node does whose model is in pieces, and reads it there. What
    is served then was packed before: packing is no part of what is simulated."""
    store = PieceStore(disk)
    source = CheckpointSource(FolderReader(model.directory), model.store.manifest, model.store.spec)

    async def pack(layer: LayerId, expert: ExpertId) -> PackedExpert:
        await asyncio.sleep(LOAD_S)
        [piece] = expert_pieces(model.store.manifest, [(layer, expert)])
        await fetch_pieces([piece], [source], store)
        data = store.read(piece.digest)
        if data is None:
            raise CheckpointError(piece.name, None, "was stored and is not there")
        decode_piece(data, piece.name)
        return model.packed[layer, expert]

    return pack


def _is_unwanted(argument: object) -> bool:
    """Whether a kernel call has a request in it whose client has gone or whose deadline has passed."""
    jobs = [each for each in argument if isinstance(each, Job)] if isinstance(argument, list) else []
    now = asyncio.get_running_loop().time()
    return any(job.deadline < now or (job.answer is not None and job.answer.done()) for job in jobs)
