"""The owner's limit on bytes per second, and the count of bytes: one Throttle for all listeners of a node.

A token bucket per direction. What we send is paced in small pieces between the lane and the connection; what we receive
is read no faster than allowed, and TCP's window tells the sender. A connection's buffers still take a first burst of at
most `READ_BYTES` and the kernel's. Counts what lanes carry: not TLS's own 0.2 %, nor the directory's traffic. An owner
may let his own network be outside the limits: `of_connection` tells it by the other end's address.
"""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from shoal.protocol.frames import Buffer
from shoal.protocol.net.channel import Traffic

BURST_S = 0.1
"""What a bucket that was idle lets through at once, in seconds of its rate: 1 % of ten seconds."""

PIECE_S = 0.05
"""One piece takes this long at the rate, within the bounds below: even, and few wake-ups."""

MIN_PIECE_BYTES, MAX_PIECE_BYTES = 512, 64 * 1024

INNER_HIGH_WATER_BYTES = 256 * 1024
"""Beyond it the network is slower than the limit, and pieces wait here instead of there."""

INNER_RETRY_S = 0.02

LAN_NETWORKS = tuple(
    ip_network(words)
    for words in (
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7",  # RFC 1918, RFC 4193
        "169.254.0.0/16", "fe80::/10", "127.0.0.0/8", "::1",  # link-local, this machine
    )
)  # fmt: skip
"""Not 100.64.0.0/10, which providers put between themselves and their customers (RFC 6598)."""

UNBOUNDED = 2**31 - 1
"""The connection's own high-water mark under pacing: it may never pause the protocol, which we do."""


class TokenBucket:
    """Bytes at a rate, as the time at which the next byte is due (a leaky bucket as a meter, ITU-T I.371).

    clock: seconds, monotonic; the loop's.
    """

    def __init__(self, bytes_per_s: int, clock: Callable[[], float]) -> None:
        self.bytes_per_s = bytes_per_s
        self.waiting_bytes = 0
        """What transports hold back for this bucket."""
        self._clock = clock
        self._due = float("-inf")

    @property
    def backlog_s(self) -> float:
        """How long what is reserved and what waits will take."""
        return max(0.0, self._due - self._clock()) + self.waiting_bytes / self.bytes_per_s

    @property
    def piece_bytes(self) -> int:
        """How much to reserve at a time."""
        return min(max(int(self.bytes_per_s * PIECE_S), MIN_PIECE_BYTES), MAX_PIECE_BYTES)

    def reserve(self, size_bytes: int) -> float:
        """Reserve the next `size_bytes` and return in how many seconds they may pass."""
        now = self._clock()
        self._due = max(self._due, now - BURST_S) + size_bytes / self.bytes_per_s
        return max(0.0, self._due - now)


@dataclass(slots=True)
class Throttle:
    """What all lanes of a node share. None: no limit in that direction."""

    up: TokenBucket | None = None
    down: TokenBucket | None = None
    traffic: Traffic = field(default_factory=Traffic)
    lan_traffic: Traffic | None = None
    """Counts what goes to and comes from private addresses, which then know no limit. None: they are as all others."""

    def of_connection(self, writer: StreamWriter) -> "Throttle":
        """What holds for one connection, by where its other end is."""
        if self.lan_traffic is None or not is_local(writer.get_extra_info("peername")):
            return self
        return Throttle(traffic=self.lan_traffic)

    def paced(self, reader: StreamReader, writer: StreamWriter) -> StreamWriter:
        """The writer to use instead of `writer`."""
        if self.up is None:
            return writer
        inner = writer.transport
        return StreamWriter(
            PacedTransport(inner, self.up), inner.get_protocol(), reader, asyncio.get_running_loop()
        )  # fmt: skip

    async def received(self, size_bytes: int) -> None:
        """Wait as long as bytes that were just read need at the limit."""
        if self.down is not None and (wait_s := self.down.reserve(size_bytes)):
            await asyncio.sleep(wait_s)

    def read_size(self, wanted_bytes: int) -> int:
        """How much to read at a time."""
        return wanted_bytes if self.down is None else min(wanted_bytes, self.down.piece_bytes)


def is_local(peername: object) -> bool:
    """Whether a socket's other end is on this machine or a private network.

    A Unix socket is libp2p's, whose peer may be anywhere: it is not.
    """
    if not isinstance(peername, tuple) or not peername:
        return False
    try:
        address = ip_address(str(peername[0]).split("%")[0])
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address in network for network in LAN_NETWORKS)


class PacedTransport(asyncio.Transport):
    """Writes to another transport no faster than a bucket lets it; everything else is that transport's.

    Limits: like any transport it buffers what is written; the protocol is paused above its high-water mark.
    """

    def __init__(self, inner: asyncio.WriteTransport, bucket: TokenBucket) -> None:
        super().__init__()
        self._inner = inner
        self._protocol = inner.get_protocol()  # a TLS transport that has ended forgets it
        self._bucket = bucket
        self._queue: deque[memoryview] = deque()
        self._piece: memoryview | None = None
        self._num_waiting = 0
        self._timer: asyncio.TimerHandle | None = None
        self._high, self._low = INNER_HIGH_WATER_BYTES, INNER_HIGH_WATER_BYTES // 4
        self._is_paused = False
        self._is_closing = False
        inner.set_write_buffer_limits(high=UNBOUNDED)

    def write(self, data: Buffer) -> None:
        if self.is_closing() or not data:
            return
        self._queue.append(memoryview(bytes(data)))
        self._wait(len(data))
        if self._timer is None:
            self._turn()

    def close(self) -> None:
        self._is_closing = True
        if self._timer is None:
            self._inner.close()

    def abort(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._is_closing = True
        self._forget()
        self._inner.abort()

    def is_closing(self) -> bool:
        return self._is_closing or self._inner.is_closing()

    def get_write_buffer_size(self) -> int:
        return self._num_waiting + self._inner.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = INNER_HIGH_WATER_BYTES if high is None else high
        self._low = self._high // 4 if low is None else low
        self._update_writing()

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self._inner.get_extra_info(name, default)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def can_write_eof(self) -> bool:
        return False

    def _turn(self) -> None:
        """Send the piece whose time has come and reserve the next."""
        loop, self._timer = asyncio.get_running_loop(), None
        if self._inner.get_write_buffer_size() > INNER_HIGH_WATER_BYTES:
            self._timer = loop.call_later(INNER_RETRY_S, self._turn)
            return
        if self._piece is not None:
            self._inner.write(self._piece)
            self._wait(-len(self._piece))
            self._piece = None
        if self._inner.is_closing():
            self._forget()
        elif self._queue:
            self._piece = self._next_piece()
            self._timer = loop.call_later(self._bucket.reserve(len(self._piece)), self._turn)
        elif self._is_closing:
            self._inner.close()

    def _wait(self, size_bytes: int) -> None:
        """So many bytes more, or less, wait here."""
        self._num_waiting += size_bytes
        self._bucket.waiting_bytes += size_bytes
        self._update_writing()

    def _forget(self) -> None:
        """Nothing that waits will be sent."""
        self._queue.clear()
        self._piece = None
        self._wait(-self._num_waiting)

    def _next_piece(self) -> memoryview:
        """Up to one piece from the front of the queue."""
        size, front = self._bucket.piece_bytes, self._queue.popleft()
        if len(front) > size:
            self._queue.appendleft(front[size:])
        return front[:size]

    def _update_writing(self) -> None:
        protocol = self._protocol
        if not isinstance(protocol, asyncio.Protocol) or self._inner.is_closing():
            return
        if not self._is_paused and self._num_waiting > self._high:
            self._is_paused = True
            protocol.pause_writing()
        elif self._is_paused and self._num_waiting <= self._low:
            self._is_paused = False
            protocol.resume_writing()
