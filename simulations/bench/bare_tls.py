"""The floor under every channel: the same bytes over the same TLS 1.3 stream, with no protocol at all.

A request is two lengths and that many bytes; the answer is as many zeros as it asked for. No messages, no hash, no
deadlines, no other request at the same time. What a channel costs more than this is ours.
"""

import asyncio
import math
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from shoal.protocol.frames import Buffer
from shoal.protocol.identity import Identity
from shoal.protocol.ids import PeerId
from shoal.protocol.messages import Dispatch, DType, Partial
from shoal.protocol.net.certificate import client_context, server_context
from shoal.protocol.net.channel import Channel, Handler, Reply, Traffic
from shoal.protocol.net.direct import format_address, open_stream, parse_address
from shoal.protocol.net.lane import READ_BYTES
from shoal.protocol.net.tcp import tune

LENGTHS = struct.Struct(">II")


class BareListener:
    """Answers with zeros."""

    def __init__(self, server: asyncio.Server) -> None:
        self._server = server

    @property
    def addresses(self) -> tuple[str, ...]:
        return (format_address("127.0.0.1", self._server.sockets[0].getsockname()[1]),)

    async def drain(self, grace_s: float) -> None:
        """There is nothing to wait for."""

    async def aclose(self) -> None:
        self._server.close()


@asynccontextmanager
async def bare_listener(identity: Identity, handler: Handler) -> AsyncIterator[BareListener]:
    """Listen on loopback; `handler` is not called."""
    listening = socket.create_server(("127.0.0.1", 0))
    tune(listening)
    server = await asyncio.start_server(_answer, sock=listening, ssl=server_context(identity), limit=READ_BYTES)
    listener = BareListener(server)
    try:
        yield listener
    finally:
        await listener.aclose()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            request_bytes, reply_bytes = LENGTHS.unpack(await reader.readexactly(LENGTHS.size))
            await reader.readexactly(request_bytes)
            writer.write(bytes(reply_bytes))
            await writer.drain()
    writer.close()


class BareChannel:
    """One stream that looks like a channel, for one request at a time."""

    def __init__(self, peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peer = peer
        self.is_closed = False
        self.is_draining = False
        self.dtypes: frozenset[DType] = frozenset()
        self.traffic = Traffic()
        self._reader = reader
        self._writer = writer

    def begin(self, message: Dispatch, body: Sequence[Buffer]) -> "asyncio.Future[Reply] | None":
        """See `Channel.begin`: never at once."""
        return None

    async def request(self, message: Dispatch, body: Sequence[Buffer]) -> Reply:
        """Send as many bytes and read as many zeros as a channel would."""
        answer = Partial(bytes(32), message.num_tokens, message.hidden, 0, 0, message.reply_dtype)
        self._writer.write(b"".join((LENGTHS.pack(message.body_size(), answer.body_size()), *body)))
        await self._writer.drain()
        return Reply(answer, await self._reader.readexactly(answer.body_size()))

    async def ping(self, timeout_s: float) -> float:
        """Not measured here: a bare stream has no control lane."""
        return math.nan

    async def aclose(self) -> None:
        self.is_closed = True
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


class BareConnector:
    """Opens bare channels."""

    def __init__(self) -> None:
        self._channels: list[BareChannel] = []

    async def connect(self, peer: PeerId, addresses: Sequence[str], timeout_s: float) -> Channel:
        """Connect to the first address."""
        endpoint = parse_address(addresses[0])
        if endpoint is None:
            raise ValueError(f"{addresses[0]} is not host:port")
        channel = BareChannel(peer, *await open_stream(client_context(), peer, *endpoint))
        self._channels.append(channel)
        return channel

    async def aclose(self) -> None:
        for channel in self._channels:
            await channel.aclose()


@asynccontextmanager
async def bare_connector(identity: Identity) -> AsyncIterator[BareConnector]:
    """Connect without proving who we are."""
    connector = BareConnector()
    try:
        yield connector
    finally:
        await connector.aclose()
