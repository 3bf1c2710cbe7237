"""Machines of a simulated swarm that pass pieces on: a disk in memory, an uplink of so many bytes a second, and the
node's own code for all that is decided.

Stands in for sockets and weights only: a channel delivers what the giver's `Seeder` answers when its uplink and the
taker's downlink have let it pass. Pieces are small, and rates are scaled with them.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from blake3 import blake3

from shoal.experts.family import ExpertSpec
from shoal.experts.pieces.disk import DiskFile
from shoal.experts.pieces.fetching import Fetched, OnStored, fetch_pieces
from shoal.experts.pieces.pieces import ExpertPiece, Piece
from shoal.experts.pieces.sources import OnBytes
from shoal.experts.pieces.store import PieceStore
from shoal.node.announcer import Announcer, Claim, Load
from shoal.node.holdings.assignment import Holding
from shoal.node.holdings.keeper import Keeper
from shoal.node.metrics import NodeMetrics
from shoal.node.seeding.peers import Peers, Wanted
from shoal.node.seeding.seeder import Seeder
from shoal.node.serving.admission import Admission, AdmissionLimits, Wire
from shoal.node.serving.server import Held
from shoal.protocol.dtypes import DType
from shoal.protocol.errors import ChannelClosed, ConnectFailed, DeadlineExceeded, ModelNotFound
from shoal.protocol.frames import Buffer
from shoal.protocol.identity import Identity
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.messages import Dispatch, Fetch, WeightFormat
from shoal.protocol.net.channel import PieceChannel, PieceReply, PieceRequest, Reply, Traffic
from shoal.protocol.net.memory_directory import MemoryDirectory
from shoal.protocol.record_book import RecordBook
from shoal.simulations.seeding.lines import Line

ROOT = b"r" * 32
EPOCH_S = 1_800_000_000.0
RTT_S = 0.05

HUB_PART_S = 0.5
"""What comes from the hub shares the line with what comes from peers, in parts of so long."""


@dataclass(frozen=True, slots=True)
class Model:
    """Experts of so many bytes each, drawn from their names."""

    num_layers: int
    num_experts: int
    piece_bytes: int

    def piece(self, layer: int, expert: int) -> tuple[ExpertPiece, bytes]:
        """An expert's piece and its bytes."""
        data = blake3(f"{layer}/{expert}".encode()).digest(self.piece_bytes)
        return ExpertPiece(blake3(data).digest(), LayerId(layer), ExpertId(expert)), data


class World:
    """What all machines share: the model's true bytes, the directory, who is reachable, the hub's counter."""

    def __init__(self, model: Model, entropy: random.Random) -> None:
        self.model = model
        self.entropy = entropy
        self.book = RecordBook()
        self.machines: dict[PeerId, Machine] = {}
        made = [model.piece(layer, expert) for layer in range(model.num_layers) for expert in range(model.num_experts)]
        self.pieces = {(piece.layer, piece.expert): piece for piece, _ in made}
        self.bytes_of = {piece.digest: data for piece, data in made}
        self.hub_bytes = 0

    @property
    def everything(self) -> Holding:
        """All experts."""
        experts = tuple(map(ExpertId, range(self.model.num_experts)))
        return {LayerId(layer): experts for layer in range(self.model.num_layers)}

    @property
    def copy_bytes(self) -> int:
        """One copy of the model."""
        return sum(map(len, self.bytes_of.values()))


class MemoryDisk:
    """Implements `Disk` for a store; what is verified is kept once for all machines."""

    def __init__(self, bytes_of: Mapping[bytes, bytes]) -> None:
        self._bytes_of = bytes_of
        self._files: dict[tuple[str, str], bytes | bytearray] = {}

    def make_folder(self, folder: str) -> None: ...

    def write(self, folder: str, name: str, data: bytes | bytearray) -> None:
        self._files[folder, name] = self._bytes_of.get(bytes.fromhex(name), data)

    def sync_file(self, folder: str, name: str) -> None: ...

    def rename(self, folder: str, name: str, new_folder: str, new_name: str) -> None:
        self._files[new_folder, new_name] = self._files.pop((folder, name))

    def sync_folder(self, folder: str) -> None: ...

    def read(self, folder: str, name: str) -> bytearray | None:
        data = self._files.get((folder, name))
        return None if data is None else bytearray(data)

    def read_range(self, folder: str, name: str, begin: int, size: int) -> bytearray | None:
        data = self.read(folder, name)
        return None if data is None else data[begin : begin + size]

    def remove(self, folder: str, name: str) -> None:
        self._files.pop((folder, name), None)

    def mark_used(self, folder: str, name: str) -> None: ...

    def find(self, folder: str, name: str) -> DiskFile | None:
        data = self._files.get((folder, name))
        return None if data is None else DiskFile(name, len(data), 0)

    def files(self, folder: str) -> list[DiskFile]:
        return [DiskFile(name, len(data), 0) for (where, name), data in self._files.items() if where == folder]

    @contextmanager
    def locked(self) -> Iterator[None]:
        yield


class Giving:
    """Implements `PieceLibrary` over a machine's store; a liar's gives other bytes."""

    def __init__(self, world: World, store: PieceStore, is_lying: bool) -> None:
        self._world = world
        self._store = store
        self._is_lying = is_lying

    @property
    def root(self) -> bytes:
        return ROOT

    @property
    def piece_bytes(self) -> int:
        return self._world.model.piece_bytes

    def knows(self, digest: bytes) -> bool:
        return digest in self._world.bytes_of

    def read(self, digest: bytes) -> bytes | bytearray | None:
        if self._is_lying:
            data = bytearray(self._world.bytes_of[digest])
            data[len(data) // 2] ^= 1
            return data
        return self._store.read(digest)


class HubSource:
    """Implements `PieceSource`: a hub that has everything, through this machine's downlink."""

    def __init__(self, world: World, down: Line) -> None:
        self._world = world
        self._down = down
        self.bytes_read = 0

    @property
    def name(self) -> str:
        return "hub"

    async def size(self, piece: Piece) -> int:
        return self._world.model.piece_bytes

    async def fetch(self, piece: Piece, on_bytes: OnBytes) -> bytearray:
        data = self._world.bytes_of.get(piece.digest)
        if data is None:
            raise ModelNotFound(piece.name)
        part_bytes = max(1, int(self._down.bytes_per_s * HUB_PART_S))
        for begin in range(0, len(data), part_bytes):
            size = min(part_bytes, len(data) - begin)
            await self._down.passes(size)
            self._world.hub_bytes += size
            self.bytes_read += size
            on_bytes(size)
        return bytearray(data)


@dataclass(frozen=True, slots=True)
class NoExpert:
    """What a simulated machine holds in memory: nothing is computed here."""

    spec: ExpertSpec
    resident_bytes: int = 1


@dataclass(frozen=True, slots=True)
class MachineSettings:
    """One machine. has_hub: whether it may ask the hub; is_lying: whether it gives wrong bytes."""

    holding: Holding
    up_bytes_per_s: float
    down_bytes_per_s: float
    has_peers: bool = True
    has_hub: bool = True
    is_lying: bool = False


class Machine:
    """A node of the simulation. `start` makes it known, `fill` brings what it lacks, `stop` ends it."""

    def __init__(self, world: World, settings: MachineSettings) -> None:
        self.world = world
        self.settings = settings
        self.identity = Identity.from_seed(world.entropy.randbytes(32))
        self.peer = self.identity.peer
        self.up = Line(settings.up_bytes_per_s)
        self.down = Line(settings.down_bytes_per_s)
        self.store = PieceStore(MemoryDisk(world.bytes_of))
        self.metrics = NodeMetrics()
        self.is_alive = True
        self.peers: Peers | None = None
        self.filled_at_s: float | None = None
        self.fetched: Fetched | None = None
        clock = asyncio.get_running_loop().time

        def unix() -> float:
            return EPOCH_S + clock()

        self.directory = MemoryDirectory(world.book, self.identity, unix)
        giving = Giving(world, self.store, settings.is_lying)
        self.seeder = Seeder(giving, Admission(AdmissionLimits(), clock), Wire(), self.metrics, clock)
        claim = Claim(self.peer, ROOT, {}, WeightFormat.BF16, 0, (f"sim/{self.peer}",), since_s=int(unix()))
        self.announcer = Announcer(self.directory, claim, lambda: Load(0, 0))
        self._held = Held(ROOT, WeightFormat.BF16, ExpertSpec(1, 1), {})
        self.keeper = Keeper(self._held, self.announcer, self._pack, 1 << 30, 1, self._arriving)
        self._announcing: asyncio.Task[None] | None = None

    async def start(self, is_full: bool = False) -> None:
        """Say what is held and what is coming. is_full: it has everything that it holds from the beginning."""
        self.world.machines[self.peer] = self
        holding = self.settings.holding
        if is_full:
            for layer, experts in holding.items():
                for expert in experts:
                    piece = self.world.pieces[layer, expert]
                    self.store.put(piece.digest, self.world.bytes_of[piece.digest])
                    self._held.experts.setdefault(layer, {})[expert] = await self._pack(layer, expert)
        await self.keeper.announce({} if is_full else holding)
        self._announcing = asyncio.create_task(self.announcer.run(), name="announcer")

    async def fill(self) -> None:
        """Until everything that is to be held is here."""
        await self.keeper.take(self.settings.holding)
        self.filled_at_s = asyncio.get_running_loop().time()

    async def stop(self) -> None:
        """End, as a killed process does: nobody is told."""
        self.is_alive = False
        if self._announcing is not None:
            self._announcing.cancel()
            await asyncio.wait({self._announcing})
        if self.peers is not None:
            await self.peers.aclose()
        await self.seeder.aclose()

    async def _pack(self, layer: LayerId, expert: ExpertId) -> NoExpert:
        return NoExpert(self._held.spec)

    async def _arriving(self, holding: Holding) -> AsyncGenerator[tuple[LayerId, ExpertId]]:
        places = [(layer, expert) for layer, experts in holding.items() for expert in experts]
        pieces = [self.world.pieces[place] for place in places]
        arrived: asyncio.Queue[ExpertPiece | None] = asyncio.Queue()
        by_digest = {piece.digest: piece for piece in pieces}

        def on_stored(piece: Piece) -> None:
            arrived.put_nowait(by_digest[piece.digest])

        fetching = asyncio.create_task(self._fetch(pieces, on_stored), name="fetch")
        fetching.add_done_callback(lambda _: arrived.put_nowait(None))
        try:
            while (piece := await arrived.get()) is not None:
                yield piece.layer, piece.expert
            self.fetched = await fetching
        finally:
            fetching.cancel()
            await asyncio.wait({fetching})

    async def _fetch(self, pieces: Sequence[ExpertPiece], on_stored: OnStored) -> Fetched:
        world, settings = self.world, self.settings
        sources = [HubSource(world, self.down)] if settings.has_hub else []
        if not settings.has_peers:
            return await fetch_pieces(pieces, sources, self.store, on_stored=on_stored)
        wanted = Wanted(ROOT, tuple(sorted(settings.holding)), world.model.piece_bytes, self.peer)
        self.peers = Peers(
            wanted, self.directory, SimulatedConnector(self), world.entropy.random, lambda: self.metrics.bytes_given
        )
        await self.peers.begin()
        looking = asyncio.create_task(self.peers.run(), name="look for pieces")
        try:
            return await fetch_pieces(pieces, sources, self.store, peers=self.peers, on_stored=on_stored)
        finally:
            looking.cancel()
            await asyncio.wait({looking})


class SimulatedConnector:
    """Implements `PieceConnector` between machines."""

    def __init__(self, taker: Machine) -> None:
        self._taker = taker

    async def connect(self, peer: PeerId, addresses: Sequence[str], timeout_s: float) -> PieceChannel:
        """See `Connector.connect`."""
        await asyncio.sleep(2 * RTT_S)
        giver = self._taker.world.machines.get(peer)
        if giver is None or not giver.is_alive:
            raise ConnectFailed(f"{peer} is gone")
        return SimulatedChannel(self._taker, giver)

    async def aclose(self) -> None:
        """Nothing is open."""


class SimulatedChannel:
    """Implements `PieceChannel`: what the giver's seeder answers, when both lines have let it pass."""

    def __init__(self, taker: Machine, giver: Machine) -> None:
        self._taker = taker
        self._giver = giver
        self.traffic = Traffic()
        self.dtypes: frozenset[DType] = frozenset()
        self.is_draining = False

    @property
    def peer(self) -> PeerId:
        return self._giver.peer

    @property
    def is_closed(self) -> bool:
        return not self._giver.is_alive

    def begin(self, message: Dispatch, body: Sequence[Buffer]) -> "asyncio.Future[Reply] | None":
        """See `Channel.begin`: never at once."""
        return None

    async def request(self, message: Dispatch, body: Sequence[Buffer]) -> Reply:
        """Nobody computes here."""
        raise ChannelClosed("no work is asked for in this simulation")

    async def fetch(self, message: Fetch) -> PieceReply:
        """See `PieceChannel.fetch`. What comes too late is known when it comes: a timer for each is most of a run."""
        late_s = asyncio.get_running_loop().time() + message.deadline_ms / 1000
        await asyncio.sleep(RTT_S / 2)
        self._check_alive()
        reply = await self._giver.seeder.handle(PieceRequest(self._taker.peer, message, bytes(32), 0.0))
        await self._giver.up.passes(reply.message.size)
        await self._taker.down.passes(reply.message.size, RTT_S / 2)
        if asyncio.get_running_loop().time() > late_s:
            raise DeadlineExceeded("no answer in time")
        self._check_alive()
        return reply

    async def ping(self, timeout_s: float) -> float:
        """The same everywhere."""
        return RTT_S

    async def aclose(self) -> None:
        """Nothing is open."""

    def _check_alive(self) -> None:
        if not self._giver.is_alive:
            raise ChannelClosed("the giver is gone")
