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
from contextlib import suppress

from shoal.protocol import limits
from shoal.protocol.errors import AddressInUse, AuthenticationFailed, Busy, ConnectFailed, InvalidRequest, ShoalError
from shoal.protocol.identity import Identity
from shoal.protocol.ids import PeerId
from shoal.protocol.membership import IsRevoked, MemberGate, Membership
from shoal.protocol.messages import Lane
from shoal.protocol.net.certificate import ALPN, check_server_key, client_context, server_context
from shoal.protocol.net.channel import ClientCount, Handler, PieceChannel, PieceHandler, no_pieces
from shoal.protocol.net.lane import CLOSE_TIMEOUT_S, READ_BYTES
from shoal.protocol.net.multiplex import LaneServer, RandomBytes, open_channel
from shoal.protocol.net.origins import HandshakeRates, Origin, origin_of
from shoal.protocol.net.task_set import TaskSet
from shoal.protocol.net.tcp import tune
from shoal.protocol.net.throttle import Throttle

ACCEPT_PAUSE_S = 0.1
"""After a failed accept; the cause is mostly a lack of file descriptors, which trying at once does not mend."""


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

    def __init__(
        self,
        identity: Identity,
        random_bytes: RandomBytes,
        membership: Membership | None = None,
        throttle: Throttle | None = None,
    ) -> None:
        """throttle: a node's limits; None: a client's own, who knows what it asked for."""
        self._membership = membership
        self._throttle = throttle
        self._identity = identity
        self._random_bytes = random_bytes
        self._context = client_context()
        self._channels: list[PieceChannel] = []

    async def connect(self, peer: PeerId, addresses: Sequence[str], timeout_s: float) -> PieceChannel:
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

    async def _connect_to(self, peer: PeerId, host: str, port: int, timeout_s: float) -> PieceChannel:
        async def open_lane(lane: Lane) -> tuple[StreamReader, StreamWriter]:
            return await open_stream(self._context, peer, host, port)

        channel = await open_channel(
            self._identity, peer, open_lane, self._random_bytes, timeout_s, self._membership, self._throttle
        )
        self._channels = [*(known for known in self._channels if not known.is_closed), channel]
        return channel


async def open_stream(context: ssl.SSLContext, peer: PeerId, host: str, port: int) -> tuple[StreamReader, StreamWriter]:
    """Open a TLS stream and make sure that `peer` is at its other end, before anything is sent on it."""
    reader = StreamReader(READ_BYTES)
    protocol = StreamReaderProtocol(reader)
    loop = asyncio.get_running_loop()
    try:
        transport, _ = await loop.create_connection(
            lambda: protocol, sock=await _connected(host, port), ssl=context,
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
    return reader, StreamWriter(transport, protocol, reader, loop)


async def _connected(host: str, port: int) -> socket.socket:
    """A TCP connection, tuned before its first packet. A name's addresses are tried one after another.

    Raises:
        OSError: the last address's.
    """
    loop = asyncio.get_running_loop()
    failure = OSError(errno.EADDRNOTAVAIL, "no address")
    for family, address in await _resolved(host, port):
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            tune(connection)
            await loop.sock_connect(connection, address)
        except BaseException as error:
            connection.close()
            if not isinstance(error, OSError):
                raise
            failure = error
        else:
            return connection
    raise failure


async def _resolved(host: str, port: int) -> list[tuple[int, tuple[str | int | bytes, ...]]]:
    """Families and addresses to connect to. What is an address already costs no thread."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):  # not an address of this family, or with a zone, which the system's resolver knows
            socket.inet_pton(family, host)
            return [(family, (host, port))]
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


async def listen_direct(
    identity: Identity,
    host: str,
    port: int,
    handler: Handler,
    random_bytes: RandomBytes,
    announce_host: str | None = None,
    throttle: Throttle | None = None,
    gate: MemberGate | None = None,
    pieces: PieceHandler = no_pieces,
) -> "DirectListener":
    """Serve `handler` at a TCP address; port 0 takes any free one. `announce_host`: under which name peers reach us.

    Raises:
        AddressInUse: the port is taken. InvalidRequest: the host is none of this machine.
    """
    listener = DirectListener(identity, handler, random_bytes, throttle, gate, pieces)
    try:
        await listener.start(host, port, announce_host)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(format_address(host, port)) from error
        raise InvalidRequest(f"can not listen at {format_address(host, port)}: {error.strerror or error}") from error
    return listener


class DirectListener:
    """Implements `Listener` over TLS 1.3. Make it with `listen_direct`.

    Accepts by hand instead of through the loop's TLS server: so a connection counts as half open from its first packet,
    and a failed TLS handshake is our exception and not a line in somebody's log.
    """

    def __init__(
        self,
        identity: Identity,
        handler: Handler,
        random_bytes: RandomBytes,
        throttle: Throttle | None = None,
        gate: MemberGate | None = None,
        pieces: PieceHandler = no_pieces,
    ) -> None:
        self._context = server_context(identity)
        self._lanes = LaneServer(identity, handler, random_bytes, throttle=throttle, gate=gate, pieces=pieces)
        self._accepting = TaskSet()
        self._serving = TaskSet()
        self._addresses: tuple[str, ...] = ()

    async def start(self, host: str, port: int, announce_host: str | None) -> None:
        """Begin to listen."""
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, address = found[0]
        listening = socket.create_server((str(address[0]), port), family=family, backlog=limits.MAX_HALF_OPEN)
        listening.setblocking(False)
        tune(listening)  # what is accepted inherits it
        self._addresses = (format_address(announce_host or host, listening.getsockname()[1]),)
        rates = HandshakeRates(asyncio.get_running_loop().time)
        self._accepting.start(self._accept(listening, rates), "direct listener")

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    def clients(self) -> list[ClientCount]:
        """See `GatedListener.clients`."""
        return self._lanes.clients()

    def suspend(self, grace_s: float) -> None:
        """See `GatedListener.suspend`."""
        self._lanes.suspend(grace_s)

    def resume(self) -> None:
        """See `GatedListener.resume`."""
        self._lanes.resume()

    def expel(self, is_revoked: IsRevoked) -> int:
        """See `GatedListener.expel`."""
        return self._lanes.expel(is_revoked)

    async def drain(self, grace_s: float) -> None:
        """See `Listener.drain`."""
        await self._accepting.aclose()
        await self._lanes.drain(grace_s)

    async def aclose(self) -> None:
        """See `Listener.aclose`."""
        await self._accepting.aclose()
        await self._lanes.aclose()
        await self._serving.aclose()

    async def _accept(self, listening: socket.socket, rates: HandshakeRates) -> None:
        loop = asyncio.get_running_loop()
        with listening:
            while True:
                try:
                    connection, address = await loop.sock_accept(listening)
                except OSError:  # out of file descriptors, or the client is gone already
                    await asyncio.sleep(ACCEPT_PAUSE_S)
                    continue
                origin = origin_of(address)
                try:
                    rates.take(origin)
                except Busy:
                    connection.close()
                    continue
                self._serving.start(self._serve(connection, origin), "direct lane")

    async def _serve(self, connection: socket.socket, origin: Origin | None) -> None:
        task = asyncio.current_task()

        def cut() -> None:
            if task is not None:
                task.cancel()

        try:
            with self._lanes.admission.half_open(origin, cut):
                reader, writer = await self._start_tls(connection)
        except (OSError, Busy):  # no TLS 1.3, silence, or too many: nobody whom we owe an answer
            connection.close()
            return
        except asyncio.CancelledError:  # the place was needed, or the listener ends
            connection.close()
            raise
        await self._lanes.serve_lane(reader, writer, None)

    async def _start_tls(self, connection: socket.socket) -> tuple[StreamReader, StreamWriter]:
        loop = asyncio.get_running_loop()
        reader = StreamReader(READ_BYTES)
        protocol = StreamReaderProtocol(reader)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, connection, ssl=self._context,
            ssl_handshake_timeout=limits.HANDSHAKE_TIMEOUT_S, ssl_shutdown_timeout=CLOSE_TIMEOUT_S,
        )  # fmt: skip
        if transport.get_extra_info("ssl_object").selected_alpn_protocol() != ALPN:
            transport.abort()
            raise ConnectionAbortedError("not our protocol")
        return reader, StreamWriter(transport, protocol, reader, loop)
