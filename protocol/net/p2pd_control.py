"""What we ask of p2pd on its control socket: dial a peer, open a raw stream, hand us the streams of others.

hivemind has a client for the same socket; ours closes its connections when a request fails or is cancelled (hivemind's
leaks them), gives streams the buffers that our frames need, and keeps sockets in a directory that only we can enter.
Source of the messages: `p2pd.proto` of learning-at-home/go-libp2p-daemon. Knows no frames and no channels.
"""

import asyncio
import logging
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import base58

from shoal.protocol.errors import AuthenticationFailed, ConnectFailed, ShoalError
from shoal.protocol.identity import public_key_of
from shoal.protocol.ids import PeerId
from shoal.protocol.net.lane import READ_BYTES

if TYPE_CHECKING:
    from hivemind.proto.p2pd_pb2 import Request, Response, StreamInfo

MAX_CONTROL_BYTES = 64 * 1024
"""A message of the control socket; the longest has a few addresses."""

MAX_VARINT_BYTES = 3
"""Encodes any length up to `MAX_CONTROL_BYTES`."""

ACCEPT_TIMEOUT_S = 5.0
"""p2pd writes whom a stream is from before anything else."""

STOP_TIMEOUT_S = 1.0
"""For p2pd to forget our handler; it is about to end in most cases."""

StreamHandler = Callable[[StreamReader, StreamWriter, PeerId], Awaitable[None]]
"""Serves one stream of a peer that libp2p has authenticated, and closes it."""

_log = logging.getLogger(__name__)


async def dial(control_path: Path, peer: PeerId, addresses: Sequence[str]) -> None:
    """Have p2pd connect to `peer` at any of `addresses` (multiaddrs), unless it is connected already.

    Raises:
        ConnectFailed: nobody answers there. AuthenticationFailed: somebody else does. Malformed: not a peer id.
    """
    from hivemind.proto.p2pd_pb2 import ConnectRequest, Request

    public_key_of(peer)
    connect = ConnectRequest(peer=base58.b58decode(peer), addrs=_binary_addresses(peer, addresses))
    try:
        async with _control(control_path) as (reader, writer):
            await _ask(reader, writer, Request(type=Request.CONNECT, connect=connect))
    except ConnectFailed as error:
        if "peer id mismatch" in str(error):
            raise AuthenticationFailed(f"another peer than {peer} lives at {', '.join(addresses)}") from error
        raise


async def open_stream(control_path: Path, peer: PeerId, protocol_id: str) -> tuple[StreamReader, StreamWriter]:
    """Open a raw stream to a peer that p2pd knows. The caller closes it, and must do so before the other end does.

    Raises:
        ConnectFailed: the peer is gone, unknown, or does not speak the protocol.
    """
    from hivemind.proto.p2pd_pb2 import Request, StreamOpenRequest

    request = Request(
        type=Request.STREAM_OPEN, streamOpen=StreamOpenRequest(peer=base58.b58decode(peer), proto=[protocol_id])
    )
    reader, writer = await _connect(control_path)
    try:
        await _ask(reader, writer, request)
    except BaseException:
        writer.transport.abort()
        raise
    return reader, writer


class StreamServer:
    """Takes the streams that peers open to us under one protocol id."""

    def __init__(self, control_path: Path, protocol_id: str) -> None:
        self._control_path = control_path
        self._path = control_path.with_name("streams.sock")
        self._protocol_id = protocol_id
        self._server: asyncio.Server | None = None

    async def start(self, handler: StreamHandler) -> None:
        """Have p2pd hand every stream to `handler`.

        Raises:
            ConnectFailed: p2pd has ended, or somebody serves the protocol already.
        """
        from hivemind.proto.p2pd_pb2 import Request, StreamHandlerRequest

        async def accept(reader: StreamReader, writer: StreamWriter) -> None:
            try:
                peer = await _read_peer(reader)
            except (ShoalError, OSError, EOFError, TimeoutError) as error:
                _log.debug("a stream of nobody: %s", error)
                writer.transport.abort()
                return
            await handler(reader, writer, peer)

        streams = StreamHandlerRequest(addr=_unix_address(self._path), proto=[self._protocol_id], balanced=False)
        async with _control(self._control_path) as (reader, writer):
            await _ask(reader, writer, Request(type=Request.STREAM_HANDLER, streamHandler=streams))
        self._server = await asyncio.start_unix_server(accept, self._path, limit=READ_BYTES)

    async def stop(self) -> None:
        """Take no new streams; those that are open go on. Idempotent, and no error if p2pd has ended."""
        if self._server is None:
            return
        from hivemind.proto.p2pd_pb2 import RemoveStreamHandlerRequest, Request

        self._server.close()
        self._server = None
        remove = RemoveStreamHandlerRequest(addr=_unix_address(self._path), proto=[self._protocol_id])
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S), _control(self._control_path) as (reader, writer):
                await _ask(reader, writer, Request(type=Request.REMOVE_STREAM_HANDLER, removeStreamHandler=remove))
        except (ConnectFailed, TimeoutError) as error:
            _log.debug("p2pd kept our handler: %s", error)


async def _read_peer(reader: StreamReader) -> PeerId:
    from hivemind.proto.p2pd_pb2 import StreamInfo

    info = StreamInfo()
    async with asyncio.timeout(ACCEPT_TIMEOUT_S):
        await _receive(reader, info)
    peer = PeerId(base58.b58encode(info.peer[:64]).decode())
    public_key_of(peer)  # an RSA peer can not speak to us (R2)
    return peer


def _binary_addresses(peer: PeerId, addresses: Sequence[str]) -> list[bytes]:
    """Multiaddrs in their binary form without the final `/p2p/<peer>`; those of other peers are left out."""
    from hivemind.utils.multiaddr import Multiaddr

    binary = []
    for address in addresses:
        transport, _, owner = address.rpartition("/p2p/")
        try:
            if owner in (peer, ""):
                binary.append(Multiaddr(transport).to_bytes())
            elif "/" in owner:  # /p2p/<relay>/p2p-circuit
                binary.append(Multiaddr(address).to_bytes())
        except (ValueError, LookupError) as error:
            _log.debug("an address of %s that is no multiaddr: %s", peer, error)
    if not binary:
        raise ConnectFailed(f"{peer} has no libp2p address among {list(addresses)}")
    return binary


def _unix_address(path: Path) -> bytes:
    from hivemind.utils.multiaddr import Multiaddr

    return bytes(Multiaddr(f"/unix{path}").to_bytes())


async def _connect(control_path: Path) -> tuple[StreamReader, StreamWriter]:
    try:
        return await asyncio.open_unix_connection(control_path, limit=READ_BYTES)
    except OSError as error:
        raise ConnectFailed("our p2pd is not running") from error


@asynccontextmanager
async def _control(control_path: Path) -> AsyncIterator[tuple[StreamReader, StreamWriter]]:
    reader, writer = await _connect(control_path)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()  # a request has been answered or is given up; nothing is in flight


async def _ask(reader: StreamReader, writer: StreamWriter, request: "Request") -> None:
    """Send a request and wait for its OK; p2pd's refusal becomes ConnectFailed."""
    from hivemind.proto.p2pd_pb2 import Response

    response = Response()
    encoded = request.SerializeToString()
    try:
        writer.write(_varint(len(encoded)) + encoded)
        await _receive(reader, response)
    except (OSError, EOFError) as error:
        raise ConnectFailed("our p2pd has ended") from error
    if response.type == Response.ERROR:
        raise ConnectFailed(response.error.msg)


async def _receive(reader: StreamReader, message: "Response | StreamInfo") -> None:
    length = shift = 0
    for _ in range(MAX_VARINT_BYTES):
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    if byte >= 0x80 or length > MAX_CONTROL_BYTES:
        raise ConnectFailed("our p2pd speaks another protocol")
    message.ParseFromString(await reader.readexactly(length))


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
