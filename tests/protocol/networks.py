"""Two peers and a network between them, for the tests of channels: in memory and over TLS."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from socket import SO_RCVBUF, SOL_SOCKET

import uvloop

from shoal.protocol.errors import ShoalError
from shoal.protocol.handshake import ClientHandshake
from shoal.protocol.identity import Identity
from shoal.protocol.messages import Challenge, Dispatch, Lane, Partial, Refusal, Welcome
from shoal.protocol.net.certificate import client_context
from shoal.protocol.net.channel import (
    GatedListener,
    Handler,
    PieceChannel,
    PieceConnector,
    PieceHandler,
    Reply,
    Request,
    no_pieces,
)
from shoal.protocol.net.direct import DirectConnector, listen_direct, open_stream, parse_address
from shoal.protocol.net.lane import LaneStream
from shoal.protocol.net.memory import MemoryNetwork

SERVER = Identity.from_seed(b"s" * 32)
CLIENT = Identity.from_seed(b"c" * 32)
OTHER = Identity.from_seed(b"o" * 32)
HIDDEN = 64
SOON_S = 30.0
"""No test waits so long unless it has failed or the machine does ten other things."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def dispatch(num_tokens: int = 1, hidden: int = HIDDEN, deadline_ms: int = 5000) -> Dispatch:
    """A DISPATCH to one expert."""
    return Dispatch(b"r" * 32, 3, 1, 2, 2, num_tokens, hidden, (7,), (num_tokens,), deadline_ms)


def body_of(message: Dispatch, first_byte: int = 0) -> list[bytes]:
    """A body of the right size that tells requests apart by its first byte."""
    return [bytes([first_byte]) + bytes(message.body_size() - 1)]


def reply_to(request: Request) -> Reply:
    """A PARTIAL of zeros whose first byte is that of the request's body."""
    message = Partial(request.request_hash, request.message.num_tokens, request.message.hidden, 0, 0)
    return Reply(message, bytes(request.body[:1]) + bytes(message.body_size() - 1))


async def echo(request: Request) -> Reply:
    """The handler of tests that are not about handlers."""
    return reply_to(request)


@dataclass
class Gate:
    """A handler that answers when told, and remembers what became of its requests."""

    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, request: Request) -> Reply:
        self.arrived.set()
        try:
            await self.opened.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return reply_to(request)


@dataclass
class Pair:
    """A listener, and how its client gets to it: by channel or by raw stream."""

    listener: GatedListener
    connector: PieceConnector
    open_stream: Callable[[], Awaitable[Streams]]

    async def connect(self) -> PieceChannel:
        return await self.connector.connect(SERVER.peer, self.listener.addresses, SOON_S)

    async def raw_lane(
        self, lane: Lane = Lane.ACT, session: bytes = b"S" * 16, identity: Identity = CLIENT
    ) -> tuple[LaneStream, Welcome | Refusal]:
        """A lane of a client that then says what no honest client says."""
        stream = LaneStream(*await self.open_stream(), frozenset({Challenge, Welcome, Refusal}))
        handshake = ClientHandshake(identity, SERVER.peer, os.urandom(32), session, lane)
        try:
            stream.write(0, handshake.answer((await stream.receive()).message))
            answer = (await stream.receive()).message
        except ShoalError:
            stream.close()
            raise
        return stream, answer if isinstance(answer, Refusal) else handshake.finish(answer)


@asynccontextmanager
async def memory_pair(handler: Handler, pieces: PieceHandler = no_pieces) -> AsyncIterator[Pair]:
    network = MemoryNetwork()
    listener = await network.listen(SERVER, handler, os.urandom, pieces)
    connector = network.connector(CLIENT, os.urandom)
    yield Pair(listener, connector, lambda: network.open_stream(CLIENT.peer, SERVER.peer))
    await connector.aclose()
    await listener.aclose()


async def open_small_stream(host: str, port: int) -> Streams:
    """A TLS stream whose kernel keeps little of what its client leaves unread.

    Without the bound Linux may let the receive buffer grow to 32 MiB (`tcp_rmem`), and nothing would ever be held up.
    """
    reader, writer = await open_stream(client_context(), SERVER.peer, host, port)
    writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_RCVBUF, 64 * 1024)
    return reader, writer


@asynccontextmanager
async def direct_pair(handler: Handler, pieces: PieceHandler = no_pieces) -> AsyncIterator[Pair]:
    listener = await listen_direct(SERVER, "127.0.0.1", 0, handler, os.urandom, pieces=pieces)
    connector = DirectConnector(CLIENT, os.urandom)
    address = parse_address(listener.addresses[0])
    assert address is not None
    yield Pair(listener, connector, lambda: open_small_stream(*address))
    await connector.aclose()
    await listener.aclose()


def run(
    test: Coroutine[object, object, None], new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
) -> None:
    """Run a test to its end; leaving a task behind is a failure of its own."""

    async def whole() -> None:
        async with asyncio.timeout(SOON_S * 4):
            await test
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if left:
            raise AssertionError(f"tasks left behind: {left}")

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(whole())


@dataclass(frozen=True)
class Kind:
    """A kind of network on a kind of event loop."""

    open: Callable[[Handler, PieceHandler], AbstractAsyncContextManager[Pair]]
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop

    def __call__(self, handler: Handler, pieces: PieceHandler = no_pieces) -> AbstractAsyncContextManager[Pair]:
        return self.open(handler, pieces)

    def run(self, test: Coroutine[object, object, None]) -> None:
        run(test, self.new_loop)


PAIRS = {
    "memory": Kind(memory_pair),
    "direct": Kind(direct_pair),
    "direct-uvloop": Kind(direct_pair, uvloop.new_event_loop),
}
