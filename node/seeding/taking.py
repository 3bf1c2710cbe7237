"""One piece from one peer: chunks asked for ahead of each other, put together, continued where another peer left off.

Knows one channel; whom to ask is `peers.py`, and nothing that arrives here is trusted before it is hashed.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

from shoal.experts.digest import digest_bytes
from shoal.experts.pieces.arriving import Arrival, Gaps
from shoal.protocol import limits
from shoal.protocol.errors import Busy, Malformed
from shoal.protocol.ids import PeerId
from shoal.protocol.messages import Fetch
from shoal.protocol.net.channel import PieceChannel

CHUNKS_AHEAD = 8
"""In flight at a time: 2 MiB at most, which fills 160 Mbit/s at an RTT of 100 ms."""

CHUNK_S = 0.5
"""One chunk is what the peer gives in so long, within the bounds below: of eight in flight the last one is due after
four seconds, however slow the line is."""

FIRST_CHUNK_BYTES, MIN_CHUNK_BYTES = 64 * limits.KIB, 16 * limits.KIB
"""The first tells the piece's length and the pace; smaller ones are more overhead than gain."""

CHUNK_DEADLINE_MS = 30_000
"""A peer that shares 1 Mbit/s among four gives 10 kB in a third of a second; one that gives nothing in half a minute is
gone."""

MAX_BUSY_WAIT_S = 1.0
"""In mid-piece a peer may ask us to wait so long and no longer: then its turn went to somebody else."""

EARLIER = PeerId("somebody in an earlier run")


@dataclass(slots=True)
class Partial:
    """A piece on its way: what has come of it, and from whom."""

    data: bytearray = field(default_factory=bytearray)
    """Empty, if it comes into a file."""
    gaps: Gaps = field(default_factory=list)
    """(begin, end) of what has not come and is not asked for, ascending."""
    givers: set[PeerId] = field(default_factory=set)
    file: Arrival | None = None
    """Where a large one comes to."""
    asked: set[tuple[int, int]] = field(default_factory=set)
    """What is asked for and has not come."""

    @classmethod
    def into(cls, file: Arrival) -> "Partial":
        """One that comes into a file; who gave what came of it in an earlier run, nobody knows."""
        return cls(gaps=list(file.gaps), givers={EARLIER} if file.size_bytes else set(), file=file)

    @property
    def piece_bytes(self) -> int:
        """Its length; 0 as long as it is not known."""
        return len(self.data) if self.file is None else self.file.size_bytes

    @property
    def missing_bytes(self) -> int:
        """What has not come."""
        return sum(end - begin for begin, end in (*self.gaps, *self.asked))

    @property
    def is_begun(self) -> bool:
        return self.piece_bytes > 0

    def begin(self, piece_bytes: int) -> None:
        """Its length is known now."""
        self.gaps = [(0, piece_bytes)]
        if self.file is None:
            self.data = bytearray(piece_bytes)
        else:
            self.file.begin(piece_bytes)

    async def put(self, begin: int, body: memoryview, giver: PeerId) -> None:
        """A part has come."""
        self.givers.add(giver)
        if self.file is None:
            self.data[begin : begin + len(body)] = body
        else:
            await _finished(asyncio.to_thread(self._write, self.file, begin, body))

    def _write(self, file: Arrival, begin: int, body: memoryview) -> None:
        if file.write(begin, body):
            self.note()

    def forget(self) -> None:
        """What came was wrong: begin anew."""
        self.data, self.gaps, self.givers = bytearray(), [], set()
        if self.file is not None:
            self.file.discard()

    def note(self) -> None:
        """Make durable what came, if it comes into a file. Blocking."""
        if self.file is not None:
            self.file.note(sorted([*self.gaps, *self.asked]))

    def digest(self) -> bytes:
        """BLAKE3 of what came. Blocking."""
        return digest_bytes(self.data) if self.file is None else self.file.hash()

    def close(self) -> None:
        """Let go of the file."""
        if self.file is not None:
            self.file.close()

    def ask(self, most_bytes: int) -> tuple[int, int] | None:
        """The next range to ask for; None: everything has come or is asked for."""
        if not self.gaps:
            return None
        begin, end = self.gaps.pop(0)
        if end - begin > most_bytes:
            self.gaps.insert(0, (begin + most_bytes, end))
        asked = (begin, min(end, begin + most_bytes))
        self.asked.add(asked)
        return asked

    def give_back(self, asked: tuple[int, int], begin: int) -> None:
        """Of what was asked for, this and what follows did not come."""
        self.asked.discard(asked)
        if begin < asked[1]:
            self.gaps = sorted([*self.gaps, (begin, asked[1])])


async def _finished(work: Coroutine[object, object, None]) -> None:
    """Wait for work on a thread, to its end even if we are cancelled: nothing is written behind our back."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    finally:
        if not task.done():
            await asyncio.wait({task})


class Taking:
    """Takes what is missing of a piece from one peer."""

    def __init__(
        self, channel: PieceChannel, model_root: bytes, digest: bytes, max_bytes: int, on_bytes: Callable[[int], None]
    ) -> None:
        """max_bytes: what a piece of this model has at most; nothing is allocated for one that claims more."""
        self._channel = channel
        self._model_root = model_root
        self._digest = digest
        self._max_bytes = max_bytes
        self._on_bytes = on_bytes
        self._most_bytes = FIRST_CHUNK_BYTES
        self._clock = asyncio.get_running_loop().time
        self._begun_s = self._clock()
        self._taken = 0

    async def run(self, partial: Partial) -> None:
        """Until the piece is whole. What came before an error stays in `partial`.

        Raises:
            Whatever `PieceChannel.fetch` raises. Malformed: the peer contradicts itself or others about the length.
            *Cancellation:* as with an error.
        """
        if not partial.is_begun:
            await self._begin(partial)
        async with asyncio.TaskGroup() as group:
            for _ in range(CHUNKS_AHEAD):
                group.create_task(self._stream(partial), name="take chunks")

    async def _begin(self, partial: Partial) -> None:
        reply = await self._fetch(0, self._most_bytes)
        piece_bytes = reply[0]
        if piece_bytes > self._max_bytes:
            raise Malformed(f"a piece of {piece_bytes} bytes, of a model whose pieces have {self._max_bytes} at most")
        partial.begin(piece_bytes)
        asked = partial.ask(len(reply[1]))
        if asked is not None:
            await self._keep(partial, 0, reply[1])
            partial.give_back(asked, len(reply[1]))

    async def _stream(self, partial: Partial) -> None:
        while (asked := partial.ask(self._most_bytes)) is not None:
            begin, end = asked
            try:
                piece_bytes, body = await self._fetch(begin, end - begin)
                if piece_bytes != partial.piece_bytes:
                    raise Malformed(f"a piece of {piece_bytes} bytes that had {partial.piece_bytes}")
                await self._keep(partial, begin, body)
                begin += len(body)
            finally:
                partial.give_back(asked, begin)

    async def _fetch(self, begin: int, size: int) -> tuple[int, memoryview]:
        message = Fetch(self._model_root, self._digest, begin, size, CHUNK_DEADLINE_MS)
        try:
            reply = await self._channel.fetch(message)
        except Busy as busy:
            if begin == 0 or busy.retry_after_s > MAX_BUSY_WAIT_S:
                raise
            await asyncio.sleep(busy.retry_after_s)
            reply = await self._channel.fetch(message)
        self._taken += reply.message.size
        pace = self._taken / max(self._clock() - self._begun_s, 1e-3)
        self._most_bytes = min(limits.MAX_CHUNK_BYTES, max(MIN_CHUNK_BYTES, int(pace * CHUNK_S)))
        return reply.message.piece_bytes, memoryview(reply.body)

    async def _keep(self, partial: Partial, begin: int, body: memoryview) -> None:
        await partial.put(begin, body, self._channel.peer)
        self._on_bytes(len(body))
