"""Channels over TCP and TLS 1.3, where a peer can be reached: the fastest way there is (PROTOCOL.md §3).

The only module that knows sockets. The server's certificate is its peer key and the client pins it; the client's key is
proved inside, by the handshake. One TCP connection per lane.
"""

import asyncio
import errno
import socket
import ssl
from asyncio import StreamReader, StreamReaderProtocol, StreamWriter
from collections.abc import Sequence

from shoal.protocol import limits
from shoal.protocol.errors import AddressInUse, AuthenticationFailed, Busy, ConnectFailed, InvalidRequest, ShoalError
from shoal.protocol.identity import Identity
from shoal.protocol.ids import PeerId
from shoal.protocol.messages import Lane
from shoal.protocol.net.certificate import ALPN, check_server_key, client_context, server_context
from shoal.protocol.net.channel import Channel, Handler
from shoal.protocol.net.lane import CLOSE_TIMEOUT_S, READ_BYTES
from shoal.protocol.net.multiplex import LaneServer, RandomBytes, open_channel
from shoal.protocol.net.task_set import TaskSet

KEEPALIVE_IDLE_S = 60
"""TCP asks a silent peer after a minute, so that lanes of clients that lost power do not hold their places."""


def parse_address(address: str) -> tuple[str, int] | None:
    """Host and port of `host:port` or `[ipv6]:port`; None for an address of another kind (a multiaddr)."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536 or "/" in host:
        return None
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1], int(port)
    return None if ":" in host else (host, int(port))


def format_address(host: str, port: int) -> str:
    """The notation of holder records."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class DirectConnector:
    """Implements `Connector` over TLS 1.3."""

    def __init__(self, identity: Identity, random_bytes: RandomBytes) -> None:
        self._identity = identity
        self._random_bytes = random_bytes
        self._context = client_context()
        self._channels: list[Channel] = []

    async def connect(self, peer: PeerId, addresses: Sequence[str], timeout_s: float) -> Channel:
        """See `Connector.connect`. Each address gets an equal share of the time that is left."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        endpoints = [endpoint for address in addresses if (endpoint := parse_address(address))]
        failure: ShoalError = ConnectFailed(f"{peer} has no address that can be reached directly")
        for position, endpoint in enumerate(endpoints):
            share_s = (deadline - loop.time()) / (len(endpoints) - position)
            try:
                return await self._connect_to(peer, *endpoint, share_s)
            except (ConnectFailed, AuthenticationFailed) as error:
                failure = failure if isinstance(failure, AuthenticationFailed) else error
        raise failure

    async def aclose(self) -> None:
        """See `Connector.aclose`."""
        await asyncio.gather(*(channel.aclose() for channel in self._channels))

    async def _connect_to(self, peer: PeerId, host: str, port: int, timeout_s: float) -> Channel:
        async def open_lane(lane: Lane) -> tuple[StreamReader, StreamWriter]:
            return await _open_stream(self._context, peer, host, port)

        channel = await open_channel(self._identity, peer, open_lane, self._random_bytes, timeout_s)
        self._channels = [*(known for known in self._channels if not known.is_closed), channel]
        return channel


async def _open_stream(
    context: ssl.SSLContext, peer: PeerId, host: str, port: int
) -> tuple[StreamReader, StreamWriter]:
    """Open a TLS stream and make sure that `peer` is at its other end, before anything is sent on it."""
    reader = StreamReader(READ_BYTES)
    protocol = StreamReaderProtocol(reader)
    loop = asyncio.get_running_loop()
    try:
        transport, _ = await loop.create_connection(
            lambda: protocol, host, port, ssl=context,
            server_hostname="",  # no name is sent in the clear, none is checked: the key is the name
            ssl_handshake_timeout=limits.HANDSHAKE_TIMEOUT_S, ssl_shutdown_timeout=CLOSE_TIMEOUT_S,
        )  # fmt: skip
    except OSError as error:  # refused, unreachable, no such host, TLS failures
        raise ConnectFailed(f"no TLS 1.3 server at {format_address(host, port)}: {error}") from error
    try:
        tls = transport.get_extra_info("ssl_object")
        check_server_key(tls.getpeercert(binary_form=True), peer)
        if tls.selected_alpn_protocol() != ALPN:
            raise ConnectFailed(f"the server at {format_address(host, port)} does not speak {ALPN}")
    except BaseException:
        transport.abort()
        raise
    _tune(transport)
    return reader, StreamWriter(transport, protocol, reader, loop)


async def listen_direct(
    identity: Identity,
    host: str,
    port: int,
    handler: Handler,
    random_bytes: RandomBytes,
    announce_host: str | None = None,
) -> "DirectListener":
    """Serve `handler` at a TCP address; port 0 takes any free one. `announce_host`: under which name peers reach us.

    Raises:
        AddressInUse: the port is taken. InvalidRequest: the host is none of this machine.
    """
    listener = DirectListener(identity, handler, random_bytes)
    try:
        await listener.start(host, port, announce_host)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(format_address(host, port)) from error
        raise InvalidRequest(f"can not listen at {format_address(host, port)}: {error.strerror or error}") from error
    return listener


class DirectListener:
    """Implements `Listener` over TLS 1.3. Make it with `listen_direct`.

    Limits: a connection counts as half open from its acceptance, so also while its TLS handshake runs.
    """

    def __init__(self, identity: Identity, handler: Handler, random_bytes: RandomBytes) -> None:
        self._context = server_context(identity)
        self._lanes = LaneServer(identity, handler, random_bytes)
        self._tasks = TaskSet()
        self._server: asyncio.Server | None = None
        self._addresses: tuple[str, ...] = ()

    async def start(self, host: str, port: int, announce_host: str | None) -> None:
        """Begin to listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Accepted(self), host, port)
        bound_port = self._server.sockets[0].getsockname()[1]
        self._addresses = (format_address(announce_host or host, bound_port),)

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    def accept(self, transport: asyncio.Transport) -> None:
        """Take a new TCP connection, whose reading is paused."""
        self._tasks.start(self._serve(transport), "direct lane")

    async def drain(self, grace_s: float) -> None:
        """See `Listener.drain`."""
        self._stop_listening()
        await self._lanes.drain(grace_s)

    async def aclose(self) -> None:
        """See `Listener.aclose`."""
        self._stop_listening()
        await self._lanes.aclose()
        await self._tasks.aclose()

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, transport: asyncio.Transport) -> None:
        try:
            with self._lanes.admission.half_open():
                reader, writer = await self._start_tls(transport)
        except (OSError, Busy):  # no TLS 1.3, silence, or too many: nobody we owe an answer
            transport.abort()
            return
        await self._lanes.serve_lane(reader, writer, None)

    async def _start_tls(self, transport: asyncio.Transport) -> tuple[StreamReader, StreamWriter]:
        """The server's TLS handshake; done here, not by the event loop's server, to count and time it ourselves."""
        loop = asyncio.get_running_loop()
        reader = StreamReader(READ_BYTES)
        protocol = StreamReaderProtocol(reader)
        _tune(transport)
        secured = await loop.start_tls(
            transport, protocol, self._context, server_side=True,
            ssl_handshake_timeout=limits.HANDSHAKE_TIMEOUT_S, ssl_shutdown_timeout=CLOSE_TIMEOUT_S,
        )  # fmt: skip
        if secured is None or secured.get_extra_info("ssl_object").selected_alpn_protocol() != ALPN:
            raise ConnectionAbortedError("not our protocol")
        protocol.connection_made(secured)
        return reader, StreamWriter(secured, protocol, reader, loop)


class _Accepted(asyncio.Protocol):
    """A TCP connection before TLS: not a byte is read until its handshake is ours to watch."""

    def __init__(self, listener: DirectListener) -> None:
        self._listener = listener

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            transport.pause_reading()
            self._listener.accept(transport)


def _tune(transport: asyncio.BaseTransport) -> None:
    """No Nagle delay (an exchange is one write each way); keepalive, so that dead peers are noticed."""
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # Linux; macOS has another name and two hours
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
