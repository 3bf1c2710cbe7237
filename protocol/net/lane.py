"""One lane: frames over one byte stream, in both directions, with back-pressure.

Stands between a back end's stream and a session. Knows no requests, no peers and no sockets.
"""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Container, Sequence

from shoal.protocol import limits
from shoal.protocol.errors import ChannelClosed, InvalidRequest, Malformed
from shoal.protocol.frames import Buffer, Frame, FrameDecoder, encode_frame
from shoal.protocol.messages import Message
from shoal.protocol.net.channel import Traffic
from shoal.protocol.net.throttle import Throttle

READ_BYTES = 256 * limits.KIB
"""What one read may return; a prefill frame then takes few wake-ups. Back ends give it to StreamReader."""

JOIN_BYTES = 64 * limits.KIB
"""Up to here prefix, header and body are copied together (12 us at most): one write is one TLS record and one system
call, where two small ones cost 20-30 us."""

STALL_TIMEOUT_S = 30.0
"""A peer that reads nothing for so long while we have more than the high-water mark for it is gone."""

CLOSE_TIMEOUT_S = 1.0
"""What a proper close (TLS close_notify: 1 RTT) may take before the stream is cut."""


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
        else:
            self._writer.writelines((head, *body))

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

    async def receive_all(self, on_frame: Callable[[Frame], None]) -> None:
        """Hand every frame to `on_frame` until the peer closes.

        Waits while our answers pile up unread, so that a peer can not make us buffer without end.

        Raises:
            ChannelClosed: the stream broke. RemoteError: the peer's bytes are no frames, or `on_frame` says so.
        """
        data = b""  # first what came together with the end of the handshake
        while True:
            for frame in self._decoder.feed(data):
                on_frame(frame)
            if self.has_backlog:
                await self.drain()
            if not (data := await self._read(READ_BYTES)):
                return

    async def _read(self, size: int) -> bytes:
        try:
            data = await self._reader.read(self._throttle.read_size(size))
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
        """Wait for the end of a `close`, cutting the stream after a second."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._writer.wait_closed()
        except (TimeoutError, OSError):
            self.abort()
