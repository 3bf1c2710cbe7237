"""The floor under TLS itself: the same bytes over a blocking TLS 1.3 connection, OpenSSL on the socket, two processes.

No event loop, no memory buffers between OpenSSL and the kernel, no messages. What a channel over an event loop costs
more than `bare_tls.py` is ours; what that costs more than this is the loop's and its TLS layer's.
"""

import asyncio
import math
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from shoal.protocol.frames import Buffer
from shoal.protocol.identity import Identity
from shoal.protocol.ids import PeerId
from shoal.protocol.messages import Dispatch, DType, Partial
from shoal.protocol.net.certificate import client_context, server_context
from shoal.protocol.net.channel import Channel, Handler, Reply, Traffic
from shoal.protocol.net.direct import format_address, parse_address
from shoal.protocol.net.tcp import tune

LENGTHS = struct.Struct(">II")


class FloorListener:
    """Answers with zeros, on a thread."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening

    @property
    def addresses(self) -> tuple[str, ...]:
        return (format_address("127.0.0.1", self._listening.getsockname()[1]),)

    async def drain(self, grace_s: float) -> None:
        """There is nothing to wait for."""

    async def aclose(self) -> None:
        self._listening.close()


@asynccontextmanager
async def floor_listener(identity: Identity, handler: Handler) -> AsyncIterator[FloorListener]:
    """Listen on loopback for one client; `handler` is not called."""
    listening = socket.create_server(("127.0.0.1", 0))
    tune(listening)
    threading.Thread(target=_serve, args=(listening, server_context(identity)), daemon=True).start()
    listener = FloorListener(listening)
    try:
        yield listener
    finally:
        await listener.aclose()


def _serve(listening: socket.socket, context: ssl.SSLContext) -> None:
    with suppress(OSError):
        connection, _ = listening.accept()
        with context.wrap_socket(connection, server_side=True) as stream:
            while True:
                request_bytes, reply_bytes = LENGTHS.unpack(_read(stream, LENGTHS.size))
                _read(stream, request_bytes)
                stream.sendall(bytes(reply_bytes))


def _read(stream: ssl.SSLSocket, num_bytes: int) -> bytearray:
    """Exactly so many bytes.

    Raises:
        ConnectionError: the other end is gone.
    """
    data, done = bytearray(num_bytes), 0
    view = memoryview(data)
    while done < num_bytes:
        received = stream.recv_into(view[done:])
        if not received:
            raise ConnectionResetError("the stream ended")
        done += received
    return data


class FloorChannel:
    """One blocking stream that looks like a channel, for a loop that has nothing else to do."""

    def __init__(self, peer: PeerId, stream: ssl.SSLSocket) -> None:
        self.peer = peer
        self.is_closed = False
        self.is_draining = False
        self.dtypes: frozenset[DType] = frozenset()
        self.traffic = Traffic()
        self._stream = stream

    def begin(self, message: Dispatch, body: Sequence[Buffer]) -> "asyncio.Future[Reply] | None":
        """See `Channel.begin`: never at once."""
        return None

    async def request(self, message: Dispatch, body: Sequence[Buffer]) -> Reply:
        """Send as many bytes and read as many zeros as a channel would."""
        answer = Partial(bytes(32), message.num_tokens, message.hidden, 0, 0, message.reply_dtype)
        self._stream.sendall(b"".join((LENGTHS.pack(message.body_size(), answer.body_size()), *body)))
        return Reply(answer, _read(self._stream, answer.body_size()))

    async def ping(self, timeout_s: float) -> float:
        """Not measured here."""
        return math.nan

    async def aclose(self) -> None:
        self.is_closed = True
        self._stream.close()


class FloorConnector:
    """Opens such channels."""

    def __init__(self) -> None:
        self._channels: list[FloorChannel] = []

    async def connect(self, peer: PeerId, addresses: Sequence[str], timeout_s: float) -> Channel:
        """Connect to the first address."""
        endpoint = parse_address(addresses[0])
        if endpoint is None:
            raise ValueError(f"{addresses[0]} is not host:port")
        connection = socket.create_connection(endpoint, timeout_s)
        tune(connection)
        connection.settimeout(None)
        channel = FloorChannel(peer, client_context().wrap_socket(connection))
        self._channels.append(channel)
        return channel

    async def aclose(self) -> None:
        for channel in self._channels:
            await channel.aclose()


@asynccontextmanager
async def floor_connector(identity: Identity) -> AsyncIterator[FloorConnector]:
    """Connect without proving who we are."""
    connector = FloorConnector()
    try:
        yield connector
    finally:
        await connector.aclose()
