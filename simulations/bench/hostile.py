"""A process that holds as many connections to a node as it can, of every kind that honest clients never make.

Half open: a TCP connection without a word. Slow: TLS, a byte a second. Garbage: bytes that are no TLS. Silent: a client
with a key of its own that shakes hands properly and then asks for nothing. Who is cut comes again after a second.
"""

import asyncio
import os
import resource
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection

from shoal.protocol.errors import ConnectFailed, ShoalError
from shoal.protocol.identity import Identity
from shoal.protocol.ids import PeerId
from shoal.protocol.messages import Lane
from shoal.protocol.net.direct import DirectConnector, parse_address

AGAIN_S = 1.0
"""After being cut, or refused."""

LANES = len(Lane)
"""Connections of one silent client."""

TLS_HELLO = bytes.fromhex("1603010200010001fc0303")
"""How a ClientHello begins; a slow client sends no more than so much in its five seconds."""

NICE = 10
"""Their own computing is not what is measured."""

START_TIMEOUT_S = 120.0


@dataclass
class Count:
    """What the connections came to."""

    num_tried: int = 0
    num_open: int = 0


class Hostile:
    """The driver's side."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    async def count(self) -> Count:
        """Connections tried since the start, and open now."""
        return await asyncio.to_thread(self._ask)

    def _ask(self) -> Count:
        self._pipe.send("count")
        if not self._pipe.poll(START_TIMEOUT_S):
            raise ConnectFailed("the hostile process does not answer")
        tried, is_open = self._pipe.recv()
        return Count(int(tried), int(is_open))


@contextmanager
def hostile_connections(peer: PeerId, address: str, num_connections: int) -> Iterator[Hostile]:
    """As many connections as asked for, a quarter of each kind, inside the `with`."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(theirs, peer, address, num_connections), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Hostile(ours)
    finally:
        ours.close()  # which ends it
        process.join()
        process.close()


def _main(pipe: Connection, peer: PeerId, address: str, num_connections: int) -> None:
    os.nice(NICE)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * num_connections)), hard))
    asyncio.run(_hold(pipe, peer, address, num_connections))


async def _hold(pipe: Connection, peer: PeerId, address: str, num_connections: int) -> None:
    count, each = Count(), num_connections // 4
    kinds = [partial(_raw, address, send) for send in (_nothing, _slowly, _garbage)]
    ways: list[Callable[[Count], Awaitable[None]]] = [kind for kind in kinds for _ in range(each)]
    ways += [partial(_silent, peer, address, number) for number in range(-(-each // LANES))]
    tasks = [asyncio.create_task(_for_ever(way, count)) for way in ways]
    with suppress(EOFError):
        while await asyncio.to_thread(pipe.recv):
            pipe.send((count.num_tried, count.num_open))
    pending = set(tasks)
    while pending:  # Python 3.11 loses a cancellation that meets a failing child of a TaskGroup
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=AGAIN_S)


async def _for_ever(way: Callable[[Count], Awaitable[None]], count: Count) -> None:
    while True:
        with suppress(OSError, ShoalError):
            await way(count)
        await asyncio.sleep(AGAIN_S)


async def _raw(address: str, send: Callable[[asyncio.StreamWriter], Awaitable[None]], count: Count) -> None:
    """A TCP connection that sends what it does, until it is cut."""
    host, port = parse_address(address) or ("", 0)
    count.num_tried += 1
    reader, writer = await asyncio.open_connection(host, port)
    count.num_open += 1
    sending = asyncio.ensure_future(send(writer))
    try:
        while await reader.read(4096):
            pass
    finally:
        count.num_open -= 1
        sending.cancel()
        writer.close()


async def _nothing(writer: asyncio.StreamWriter) -> None:
    """Half open."""


async def _slowly(writer: asyncio.StreamWriter) -> None:
    for byte in TLS_HELLO * 10:
        writer.write(bytes([byte]))
        await asyncio.sleep(1.0)


async def _garbage(writer: asyncio.StreamWriter) -> None:
    writer.write(os.urandom(4096))


async def _silent(peer: PeerId, address: str, number: int, count: Count) -> None:
    """A client that enters and asks for nothing."""
    count.num_tried += LANES
    seed = f"silent {number}".encode().ljust(32)
    connector = DirectConnector(Identity.from_seed(seed), os.urandom)
    channel = await connector.connect(peer, [address], 30.0)
    count.num_open += LANES
    try:
        while not channel.is_closed:  # noqa: ASYNC110  # a channel has no event for it, and nobody is in a hurry
            await asyncio.sleep(AGAIN_S)
    finally:
        count.num_open -= LANES
        await connector.aclose()
