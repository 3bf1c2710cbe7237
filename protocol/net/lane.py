"""One lane: frames over one byte stream, in both directions, with back-pressure.

Stands between a back end's stream and a session. Knows no requests, no peers and no sockets.
"""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Container, Coroutine, Sequence

from shoal.protocol import limits
from shoal.protocol.errors import ChannelClosed, DeadlineExceeded, InvalidRequest, Malformed
from shoal.protocol.frames import Buffer, Frame, FrameDecoder, encode_frame
from shoal.protocol.messages import Message
from shoal.protocol.net.channel import Traffic
from shoal.protocol.net.throttle import Throttle

READ_BYTES = 256 * limits.KIB
"""What one read may return; a prefill frame then takes few wake-ups. Back ends give it to StreamReader."""

JOIN_BYTES = 64 * limits.KIB
"""Up to here prefix, header and body are copied together (12 us at most): one write is one TLS record and one system
call, where two small ones cost 20-30 us."""

SLICE_BYTES = 64 * limits.KIB
"""A large body is written in such pieces: each is encrypted and on its way while the next is encrypted, and the peer
decrypts meanwhile. Written whole, 2 MiB are encrypted before the first byte leaves: 1 MiB there and 2 MiB back took 2.4
times as long as over blocking sockets (`shoal bench wire`, its floor), in pieces 1.4; 32 and 128 KiB are no better."""

STALL_TIMEOUT_S = 30.0
"""A peer that reads nothing for so long while we have more than the high-water mark for it is gone."""

CLOSE_TIMEOUT_S = 1.0
"""What a proper close (TLS close_notify: 1 RTT) may take before the stream is cut."""


Held = Callable[[int], None]
"""Told by how many bytes what is held of an unfinished frame has grown; may raise."""


def anything_goes(size_bytes: int) -> None:
    """No limit on unfinished frames: a client knows what it asked for."""


class LaneStream:
    """Frames over an authenticated byte stream.

    Limits: `write` never waits; callers bound what they write (credits, in-flight limits) or call `drain`.
    """

    def __init__(
        self,
        reader: StreamReader,
        writer: StreamWriter,
        expected: Container[type[Message]],
        throttle: Throttle | None = None,
    ) -> None:
        """`expected`: the message types of the handshake; `begin` replaces them. `throttle`: None has no limits."""
        self.traffic = Traffic()
        self._reader = reader
        self._throttle = throttle or Throttle()
        self._writer = writer = self._throttle.paced(reader, writer)
        self._decoder = FrameDecoder(expected, limits.MAX_HANDSHAKE_BYTES)
        self._is_given_up = False
        writer.transport.set_write_buffer_limits(high=limits.WRITE_HIGH_WATER_BYTES)

    def refuse_early_bytes(self) -> None:
        """Before a server lets a client in: it may not have sent anything after its HELLO.

        Raises:
            Malformed: it did.
        """
        if not self._decoder.is_between_frames:
            raise Malformed("bytes after HELLO, before its answer")

    def begin(self, expected: Container[type[Message]], traffic: Traffic) -> None:
        """End the handshake: from here on frames of full size and of these types are read, and `traffic` counts."""
        traffic.bytes_sent += self.traffic.bytes_sent
        traffic.bytes_received += self.traffic.bytes_received
        self.traffic = traffic
        self._decoder.expected = expected
        self._decoder.max_bytes = limits.MAX_FRAME_BYTES

    def write(
        self, request_id: int, message: Message, body: Sequence[Buffer] = (), header: bytes | None = None
    ) -> None:
        """Send one frame; `header` as for `encode_frame`. Does nothing on a lane that is closing.

        Raises:
            InvalidRequest: the pieces of `body` do not have the size that the message says.
        """
        body_bytes = sum(memoryview(piece).nbytes for piece in body)
        head = encode_frame(request_id, message, header, body_bytes)
        if body_bytes != message.body_size():
            raise InvalidRequest(f"a body of {body_bytes} bytes where the header says {message.body_size()}")
        if self._writer.is_closing():
            return
        self.traffic.bytes_sent += len(head) + body_bytes
        if len(head) + body_bytes <= JOIN_BYTES:
            self._writer.write(b"".join((head, *body)))
            return
        self._writer.write(head)
        for piece in body:
            view = memoryview(piece).cast("B")
            for start in range(0, view.nbytes, SLICE_BYTES):
                self._writer.write(view[start : start + SLICE_BYTES])

    @property
    def has_backlog(self) -> bool:
        """True if more than the high-water mark waits to be sent."""
        return self._writer.transport.get_write_buffer_size() > limits.WRITE_HIGH_WATER_BYTES

    async def drain(self) -> None:
        """Wait until the peer has read us below the high-water mark.

        Raises:
            ChannelClosed: the stream ended, or the peer reads nothing for 30 s.
        """
        if not self.has_backlog:
            return
        try:
            async with asyncio.timeout(STALL_TIMEOUT_S):
                await self._writer.drain()
        except (TimeoutError, OSError) as error:
            raise ChannelClosed("the peer does not read") from error

    async def receive(self) -> Frame:
        """Read exactly one frame: the handshake's way of reading, one answer at a time.

        Raises:
            ChannelClosed: the stream ended. RemoteError: not a frame that is expected here.
        """
        while data := await self._read(limits.MAX_HANDSHAKE_BYTES):
            for frame in self._decoder.feed(data):
                return frame
        raise ChannelClosed("the stream ended in the handshake")

    async def receive_all(self, on_frame: Callable[[Frame], None], held: Held = anything_goes) -> None:
        """Hand every frame to `on_frame` until the peer closes.

        Waits while our answers pile up unread, so that a peer can not make us buffer without end; and in the middle of
        a frame no longer than its bytes need on the slowest line, so that a peer can not hold one for ever.

        Raises:
            ChannelClosed: the stream broke. RemoteError: the peer's bytes are no frames, or `on_frame` says so.
            DeadlineExceeded: a frame comes too slowly. Whatever `held` raises.
        """
        data = b""  # first what came together with the end of the handshake
        num_held, is_new, patience = 0, False, _Patience()
        try:
            while True:
                for frame in self._decoder.feed(data):
                    on_frame(frame)
                    is_new = True
                if is_new:
                    is_new, patience = False, _Patience()
                before, num_held = num_held, self._decoder.num_held
                if num_held != before:
                    held(num_held - before)
                if self.has_backlog:
                    await self.drain()
                if not (data := await self._read(READ_BYTES, patience if num_held else None)):
                    return
        finally:
            held(-num_held)

    async def _read(self, size: int, patience: "_Patience | None" = None) -> bytes:
        reading = self._reader.read(self._throttle.read_size(size))
        try:
            data = await (reading if patience is None else patience.wait(reading))
        except OSError as error:  # resets, and ssl.SSLError
            raise ChannelClosed("the stream broke") from error
        self.traffic.bytes_received += len(data)
        await self._throttle.received(len(data))
        return data

    def close(self) -> None:
        """Begin to close: what was written is still sent. Idempotent."""
        self._writer.close()

    def abort(self) -> None:
        """Cut the stream at once. Idempotent."""
        self._writer.transport.abort()

    async def wait_closed(self) -> None:
        """Wait for the end of a `close`, cutting the stream after a second. Not again if that was in vain: the writer's
        own future is cancelled with whoever gave up, and would cancel the next one."""
        if self._is_given_up:
            return
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._writer.wait_closed()
        except (TimeoutError, OSError):
            self._is_given_up = True
            self.abort()
        except asyncio.CancelledError:
            self._is_given_up = True
            raise


class _Patience:
    """How long a peer may still keep us waiting for the rest of one frame; what it sends buys time."""

    def __init__(self) -> None:
        self._left_s = limits.FRAME_GRACE_S

    async def wait(self, reading: Coroutine[object, object, bytes]) -> bytes:
        """The result of `reading`.

        Raises:
            DeadlineExceeded: it takes too long.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        limit = asyncio.timeout(self._left_s)
        try:
            async with limit:
                data = await reading
        except TimeoutError as error:
            if limit.expired():
                raise DeadlineExceeded("a frame comes too slowly") from error
            raise  # TCP's own
        self._left_s += len(data) / limits.MIN_FRAME_BYTES_PER_S - (loop.time() - started)
        return data
