"""Channels inside one process: real handshakes and frames over byte streams that are queues of the event loop.

For tests and for simulations under a virtual clock: no sockets, no threads; time only through the loop. Peers can be
killed, silenced and stalled, connections reset, segments changed on the way. Knows no bandwidth.
"""

import asyncio
from asyncio import StreamReader, StreamReaderProtocol, StreamWriter
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from shoal.protocol import limits
from shoal.protocol.errors import AddressInUse, AuthenticationFailed, ConnectFailed
from shoal.protocol.identity import Identity
from shoal.protocol.ids import PeerId
from shoal.protocol.membership import IsRevoked
from shoal.protocol.messages import Lane
from shoal.protocol.net.channel import ClientCount, Handler, PieceChannel, PieceHandler, no_pieces
from shoal.protocol.net.lane import READ_BYTES
from shoal.protocol.net.multiplex import LaneServer, RandomBytes, open_channel
from shoal.protocol.net.task_set import TaskSet

ADDRESS_PREFIX = "memory/"

SEGMENT_BYTES = 64 * limits.KIB
"""What is delivered at a time, so that a reader that stops reading stops the writer, as it does on a network."""

Delay = Callable[[PeerId, PeerId], float]
"""One-way delay in seconds from a peer to another; asked for every segment. Segments of a connection stay in order."""

Tamper = Callable[[PeerId, PeerId, bytes], Sequence[bytes]]
"""What becomes of a segment from a peer to another: itself, nothing, more, or something else. A frame of up to
`lane.JOIN_BYTES` is one segment."""


def no_delay(sender: PeerId, receiver: PeerId) -> float:
    """All peers in one place."""
    return 0.0


def untouched(sender: PeerId, receiver: PeerId, data: bytes) -> Sequence[bytes]:
    """Segments arrive as they were sent."""
    return (data,)


class MemoryNetwork:
    """A network of peers in one event loop."""

    def __init__(self, delay_s: Delay = no_delay, tamper: Tamper = untouched) -> None:
        self._delay_s = delay_s
        self._tamper = tamper
        self._listeners: dict[PeerId, MemoryListener] = {}
        self._links: dict[PeerId, dict[_Link, None]] = {}  # in the order of their making: sets of objects have none
        self._silenced: set[PeerId] = set()
        self._stalled: Counter[PeerId] = Counter()

    def connector(self, identity: Identity, random_bytes: RandomBytes) -> "MemoryConnector":
        """How the peer `identity` opens channels."""
        return MemoryConnector(self, identity, random_bytes)

    async def listen(
        self, identity: Identity, handler: Handler, random_bytes: RandomBytes, pieces: PieceHandler = no_pieces
    ) -> "MemoryListener":
        """Serve `handler` and `pieces` as the peer `identity`.

        Raises:
            AddressInUse: that peer listens already.
        """
        if identity.peer in self._listeners:
            raise AddressInUse(ADDRESS_PREFIX + identity.peer)
        listener = MemoryListener(self, identity, LaneServer(identity, handler, random_bytes, pieces=pieces))
        self._listeners[identity.peer] = listener
        return listener

    def kill(self, peer: PeerId) -> None:
        """The peer's process dies: its connections are reset, nobody listens there any more."""
        self._listeners.pop(peer, None)
        self.reset(peer)

    def reset(self, peer: PeerId) -> None:
        """All connections of the peer are reset; it goes on listening."""
        for link in tuple(self._links.get(peer, ())):
            link.abort()

    def stall(self, peer: PeerId) -> None:
        """The peer stands still (SIGSTOP): connections stay, nothing arrives or leaves until as many `resume`s."""
        self._stalled[peer] += 1
        for link in self._links.get(peer, ()):
            link.num_stalled += 1

    def resume(self, peer: PeerId) -> None:
        """What was on its way to and from a stalled peer arrives."""
        self._stalled[peer] -= 1
        for link in tuple(self._links.get(peer, ())):
            link.num_stalled -= 1
            link.deliver()

    def silence(self, peer: PeerId) -> None:
        """The peer's cable is cut: connections stay and carry nothing, new ones do not come about."""
        self._silenced.add(peer)
        for link in self._links.get(peer, ()):
            link.is_silent = True

    def mend(self, peer: PeerId) -> None:
        """The cable is mended for new connections; the old ones carry nothing, as if a router had forgotten them."""
        self._silenced.discard(peer)

    def forget(self, peer: PeerId) -> None:
        """Stop listening under this peer id."""
        self._listeners.pop(peer, None)

    async def open_stream(self, client: PeerId, server: PeerId) -> tuple[StreamReader, StreamWriter]:
        """A byte stream from `client` to whoever listens at `server`'s address.

        Raises:
            ConnectFailed: nobody does.
        """
        await asyncio.sleep(self._delay_s(client, server) + self._delay_s(server, client))  # what a TCP handshake takes
        if {client, server} & self._silenced or self._stalled[client] or self._stalled[server]:
            await asyncio.Event().wait()  # until the caller's timeout
        listener = self._listeners.get(server)
        if listener is None:
            raise ConnectFailed(f"nobody listens at {ADDRESS_PREFIX}{server}")
        link = _Link(self._way(client, server), self._way(server, client))
        for peer in (client, server):
            links = self._links.setdefault(peer, {})
            links[link] = None
            link.on_lost.append(partial(links.pop, link, None))
        listener.accept(*link.server.streams())
        return link.client.streams()

    def _way(self, sender: PeerId, receiver: PeerId) -> "_Way":
        return _Way(partial(self._delay_s, sender, receiver), partial(self._tamper, sender, receiver))


class MemoryConnector:
    """Implements `Connector`."""

    def __init__(self, network: MemoryNetwork, identity: Identity, random_bytes: RandomBytes) -> None:
        self._network = network
        self._identity = identity
        self._random_bytes = random_bytes
        self._channels: list[PieceChannel] = []

    async def connect(self, peer: PeerId, addresses: Sequence[str], timeout_s: float) -> PieceChannel:
        """See `Connector.connect`. An address names the listener, which must be `peer`."""
        for address in addresses:
            if not address.startswith(ADDRESS_PREFIX):
                continue
            at = PeerId(address.removeprefix(ADDRESS_PREFIX))
            if at != peer:
                raise AuthenticationFailed(f"{at} lives at {address}, not {peer}")
            channel = await open_channel(self._identity, peer, self._opener(peer), self._random_bytes, timeout_s)
            self._channels = [*(known for known in self._channels if not known.is_closed), channel]
            return channel
        raise ConnectFailed(f"{peer} has no memory address")

    async def aclose(self) -> None:
        """See `Connector.aclose`."""
        for channel in self._channels:
            await channel.aclose()

    def _opener(self, peer: PeerId) -> Callable[[Lane], "asyncio.Future[tuple[StreamReader, StreamWriter]]"]:
        return lambda _: asyncio.ensure_future(self._network.open_stream(self._identity.peer, peer))


class MemoryListener:
    """Implements `Listener`."""

    def __init__(self, network: MemoryNetwork, identity: Identity, server: LaneServer) -> None:
        self._network = network
        self._peer = identity.peer
        self._server = server
        self._tasks = TaskSet()

    @property
    def addresses(self) -> tuple[str, ...]:
        return (ADDRESS_PREFIX + self._peer,)

    def accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Serve a new stream."""
        self._tasks.start(self._server.serve_lane(reader, writer, None), "memory lane")

    def clients(self) -> list[ClientCount]:
        """See `GatedListener.clients`."""
        return self._server.clients()

    def suspend(self, grace_s: float) -> None:
        """See `GatedListener.suspend`."""
        self._server.suspend(grace_s)

    def resume(self) -> None:
        """See `GatedListener.resume`."""
        self._server.resume()

    def expel(self, is_revoked: IsRevoked) -> int:
        """See `GatedListener.expel`."""
        return self._server.expel(is_revoked)

    async def drain(self, grace_s: float) -> None:
        """See `Listener.drain`."""
        await self._server.drain(grace_s)

    async def aclose(self) -> None:
        """See `Listener.aclose`."""
        self._network.forget(self._peer)
        await self._server.aclose()
        await self._tasks.aclose()


class _Way(NamedTuple):
    """What happens to segments in one direction."""

    delay_s: Callable[[], float]
    tamper: Callable[[bytes], Sequence[bytes]]


class _Link:
    """One connection: two ends, a way each."""

    def __init__(self, there: _Way, back: _Way) -> None:
        self.is_silent = False
        self.num_stalled = 0
        """How many times one of the two peers was told to stand still."""
        self.on_lost: list[Callable[[], None]] = []
        self.client = _End(self, there)
        self.server = _End(self, back)
        self.client.other, self.server.other = self.server, self.client

    def abort(self) -> None:
        """Reset both ends, as the death of one process does."""
        for end in (self.client, self.server):
            end.lose(ConnectionResetError("the peer died"))

    def deliver(self) -> None:
        """Hand over what has arrived meanwhile."""
        for end in (self.client, self.server):
            end.deliver()


class _End(asyncio.Transport):
    """One end of a link, as an asyncio transport: what is written here arrives there after the delay, in order."""

    other: "_End"

    def __init__(self, link: _Link, way: _Way) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._link = link
        self._way = way
        self._last_arrival = 0.0
        self._reader = StreamReader(READ_BYTES)
        self._protocol = StreamReaderProtocol(self._reader)
        self._on_the_way: deque[bytes | None] = deque()  # None: end of the stream
        self._arrived: deque[bytes | None] = deque()
        self._num_unread = 0
        self._high, self._low = READ_BYTES, READ_BYTES // 4
        self._is_reading = True
        self._is_writing_paused = False
        self._is_closing = False
        self._is_lost = False

    def streams(self) -> tuple[StreamReader, StreamWriter]:
        """Connect the protocol and return the streams of this end."""
        self._protocol.connection_made(self)
        return self._reader, StreamWriter(self, self._protocol, self._reader, self._loop)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._is_closing and data:
            self._num_unread += len(data)
            for start in range(0, len(data), SEGMENT_BYTES):
                segment = bytes(data[start : start + SEGMENT_BYTES])
                arriving = self._way.tamper(segment)
                self._num_unread += sum(map(len, arriving)) - len(segment)
                for piece in arriving:
                    self._send(piece)
            self._update_writing()

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._send(None)
            self._loop.call_soon(self.lose, None)

    def abort(self) -> None:
        if not self._is_lost:
            self.lose(None)
            self._loop.call_later(self._way.delay_s(), self.other._on_reset)

    def _on_reset(self) -> None:
        """The other end has cut the connection; through a cut cable nobody hears of it."""
        if not self._link.is_silent:
            self.lose(ConnectionResetError("the peer cut the connection"))

    def lose(self, error: Exception | None) -> None:
        """The connection ends here."""
        if not self._is_lost:
            self._is_lost = self._is_closing = True
            self._loop.call_soon(self._protocol.connection_lost, error)
            for callback in self._link.on_lost:
                callback()

    def is_closing(self) -> bool:
        return self._is_closing

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        self._is_reading = True
        self._loop.call_soon(self.deliver)

    def is_reading(self) -> bool:
        return self._is_reading and not self._is_closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = READ_BYTES if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        return self._num_unread

    def can_write_eof(self) -> bool:
        return False

    def _send(self, data: bytes | None) -> None:
        # Timers of one moment run in no particular order; the queue keeps the bytes in theirs.
        self._on_the_way.append(data)
        self._last_arrival = max(self._last_arrival, self._loop.time() + self._way.delay_s())
        self._loop.call_at(self._last_arrival, self._hand_over)

    def _hand_over(self) -> None:
        data = self._on_the_way.popleft()
        if not self._link.is_silent:
            self.other._arrived.append(data)
            self.other.deliver()

    def deliver(self) -> None:
        """Give the reader what has arrived, while it reads and nobody is stalled."""
        while self._arrived and self._is_reading and not self._is_closing and not self._link.num_stalled:
            data = self._arrived.popleft()
            if data is None:
                self._protocol.eof_received()
            else:
                self._protocol.data_received(data)
                self.other._was_read(len(data))

    def _was_read(self, size: int) -> None:
        self._num_unread -= size
        self._update_writing()

    def _update_writing(self) -> None:
        if self._is_lost:
            return
        if not self._is_writing_paused and self._num_unread > self._high:
            self._is_writing_paused = True
            self._protocol.pause_writing()
        elif self._is_writing_paused and self._num_unread <= self._low:
            self._is_writing_paused = False
            self._protocol.resume_writing()
