"""Gives pieces of our model to peers that ask by FETCH: verified bytes only, in turns, behind answers to clients.

Between the channel and the library. What leaves on a limited uplink is kept short: a chunk is what the limit lets pass
in a tenth of a second, and the next one is made when the last has left, so that a decode frame waits for no more than
that. Knows no sockets and no directory.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress

from shoal.experts.pieces.ranged import RangedPiece
from shoal.node.log_events import PieceNotGiven, log_event
from shoal.node.metrics import NodeMetrics
from shoal.node.seeding.choke import Choke
from shoal.node.seeding.library import PieceLibrary
from shoal.node.serving.admission import Admission, Wire
from shoal.protocol.errors import Busy, CheckpointError, Draining, Malformed, NotHeld, ShoalError, WrongModel
from shoal.protocol.frames import Buffer
from shoal.protocol.ids import PeerId
from shoal.protocol.messages import Chunk
from shoal.protocol.net.channel import PieceReply, PieceRequest

GIVE_WAY_S = 0.05
"""A chunk lets requests that are being computed go first, for so long: one that always computes still gives 5 MB/s."""

BACKLOG_S = 0.1
"""What may wait for the owner's limit when the next chunk is made, and what one chunk takes of it."""

MIN_CHUNK_BYTES = 4096
"""At the slowest limit: smaller ones are mostly header."""

MIN_SLEEP_S = 0.005
"""Rounding must not make a wait of nothing, again and again."""

MAX_ASKED_AT_ONCE = 16
"""Chunks that one peer may have asked for and not been given: whoever asks more takes no larger part."""

ASKED_TOO_MUCH_RETRY_S = 0.5
"""Its next chunk leaves before."""

KEPT_PIECES = 6
"""In memory, of a node whose turns are fewer: the next taker of one is often in the line."""

Content = bytes | bytearray | RangedPiece

OPEN_IDLE_S = 30.0
"""A piece stays in memory so long after the last chunk of it: its taker may have had a short break."""


class Seeder:
    """One node's part as a source. Its memory: the pieces of the turns that it gives, six at least: 264 MB of
    DeepSeek-V3's, and 528 MB where an uplink of 200 Mbit/s serves twelve."""

    def __init__(
        self, library: PieceLibrary, admission: Admission, wire: Wire, metrics: NodeMetrics, clock: Callable[[], float]
    ) -> None:
        """clock: seconds, monotonic; the loop's."""
        self._library = library
        self._admission = admission
        self._wire = wire
        self._metrics = metrics
        self._clock = clock
        self.choke = Choke(library.piece_bytes)
        self._is_open = True
        self._asked: Counter[PeerId] = Counter()
        self._pieces: OrderedDict[bytes, asyncio.Task[Content | None]] = OrderedDict()
        self._leaving = asyncio.Lock()
        """Chunks leave one at a time, in the order in which they were asked for."""
        self._timer: asyncio.TimerHandle | None = None

    def set_open(self, is_open: bool) -> None:
        """Whether anything is given; a paused node gives nothing."""
        self._is_open = is_open

    async def aclose(self) -> None:
        """Forget what is in memory; call it when no channel brings requests any more."""
        self._is_open = False
        if self._timer is not None:
            self._timer.cancel()
        tasks = list(self._pieces.values())
        self._pieces.clear()
        if tasks:
            await asyncio.wait(tasks)

    async def handle(self, request: PieceRequest) -> PieceReply:
        """Give a part of a piece.

        Raises:
            WrongModel, NotHeld, Malformed: it does not fit this node. Busy: others have their turn. Draining: paused.

        Cancellation: nothing was given.
        """
        try:
            return await self._serve(request)
        except ShoalError:
            self._metrics.fetches_refused += 1
            raise

    async def _serve(self, request: PieceRequest) -> PieceReply:
        peer, message = request.peer, request.message
        if message.model_root != self._library.root:
            raise WrongModel("another model")
        self._check_open()
        if not self._library.knows(message.digest):
            raise NotHeld("no piece of this model has that hash")
        if self._asked[peer] >= MAX_ASKED_AT_ONCE:
            raise Busy("this peer has asked for many chunks at once", ASKED_TOO_MUCH_RETRY_S)
        self.choke.enter(peer, self._clock())
        self._asked[peer] += 1
        try:
            return await self._give(request)
        finally:
            self._asked[peer] -= 1
            if not self._asked[peer]:
                del self._asked[peer]

    async def _give(self, request: PieceRequest) -> PieceReply:
        message = request.message
        piece = await self._open(message.digest)
        if message.begin >= len(piece):
            raise Malformed(f"byte {message.begin} of a piece of {len(piece)}")
        async with self._leaving:
            await self._give_way()
            self._check_open()
            size = min(message.size, len(piece) - message.begin, self._chunk_bytes)
            self._count(request.peer, message.begin + size == len(piece), size)
        body = await self._part(piece, message.begin, size)
        return PieceReply(Chunk(request.request_hash, len(piece), size), body)

    async def _part(self, piece: Content, begin: int, size: int) -> Buffer:
        if not isinstance(piece, RangedPiece):
            return memoryview(piece)[begin : begin + size]
        try:
            return await asyncio.to_thread(piece.read, begin, size)
        except (OSError, CheckpointError) as error:
            log_event(PieceNotGiven(type(error).__name__))
            raise NotHeld("this piece is not here any more") from error

    async def _open(self, digest: bytes) -> Content:
        """A piece in memory, or, of the trunk, where it lies; read and hashed once for all who take it.

        Raises:
            NotHeld: it is not on this machine, or damaged.
        """
        reading = self._pieces.get(digest)
        if reading is None:
            reading = asyncio.create_task(self._read(digest), name="read a piece")
            self._pieces[digest] = reading
        self._pieces.move_to_end(digest)
        self._keep_few()
        piece = await asyncio.shield(reading)
        if piece is None:
            self._pieces.pop(digest, None)
            raise NotHeld("this piece is not here")
        return piece

    async def _read(self, digest: bytes) -> Content | None:
        try:
            return await asyncio.to_thread(self._library.read, digest)
        except OSError as error:
            log_event(PieceNotGiven(type(error).__name__))
            return None

    def _keep_few(self) -> None:
        while len(self._pieces) > max(KEPT_PIECES, self.choke.most_turns):
            oldest = next((digest for digest, task in self._pieces.items() if task.done()), None)
            if oldest is None:
                break
            del self._pieces[oldest]
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(OPEN_IDLE_S, self._forget)

    def _forget(self) -> None:
        self._timer = None
        for digest in [digest for digest, task in self._pieces.items() if task.done()]:
            del self._pieces[digest]

    async def _give_way(self) -> None:
        """Wait for clients' answers, a little, and until what was given before has left."""
        if self._admission.num_admitted:
            with suppress(TimeoutError):
                async with asyncio.timeout(GIVE_WAY_S):
                    await self._admission.until_idle()
        over_s = self._wire.backlog_s() - BACKLOG_S
        while over_s > 0:
            await asyncio.sleep(max(over_s, MIN_SLEEP_S))
            over_s = self._wire.backlog_s() - BACKLOG_S

    @property
    def _chunk_bytes(self) -> int:
        rate = self._wire.up_bytes_per_s
        return 2**31 if rate is None else max(MIN_CHUNK_BYTES, int(rate * BACKLOG_S))

    def _count(self, peer: PeerId, is_end: bool, size_bytes: int) -> None:
        self.choke.count(peer, size_bytes, self._clock())
        self._metrics.bytes_given += size_bytes
        self._metrics.pieces_given += is_end

    def _check_open(self) -> None:
        if not self._is_open:
            raise Draining("this node gives nothing now")
