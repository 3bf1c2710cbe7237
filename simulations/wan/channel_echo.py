"""How many round trips an exchange takes over a link, on both channels and at every size up to 64 KiB.

    python -m shoal.simulations.wan.channel_echo        needs root

A holder that computes nothing and a client, each a process in a network namespace of its own, a relay between them.
Rows of bf16 go out and as many bytes come back, on our own sockets (`direct`) and on p2pd's (`libp2p`), with the
kernel's TCP as it is, with reno set in the namespaces (p2pd's sockets are not ours to tune), and with reno that keeps
its window in pauses, as `shoal doctor` advises.
"""

import asyncio
import json
import os
import statistics
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Generic, TypeVar

from shoal.protocol.errors import ConnectFailed
from shoal.protocol.identity import Identity
from shoal.protocol.messages import DType
from shoal.protocol.net.channel import Connector, Listener
from shoal.protocol.net.direct import DirectConnector, listen_direct
from shoal.protocol.net.libp2p import Libp2pConnector, listen_libp2p
from shoal.protocol.net.p2pd import P2pdSettings, start_p2pd
from shoal.protocol.net.tcp import read_tcp_kernel
from shoal.simulations.bench.machine import describe_machine, git_commit
from shoal.simulations.bench.wire import Shape, answer_with_zeros, exchange_times, run_in_uvloop
from shoal.simulations.fork_server import start_fork_server
from shoal.simulations.wan.link import Link
from shoal.simulations.wan.namespace import (
    enter_network,
    keep_window_when_idle,
    set_congestion_control,
    why_no_namespaces,
)
from shoal.simulations.wan.network import Host, open_network

Said = TypeVar("Said")

RTT_MS = 20.0
SHAPES = (Shape(1, 7168), Shape(2, 7168), Shape(4, 8192))
"""14, 28 and 64 KiB each way."""

CHANNELS = ("direct", "libp2p")
KERNELS, RENO, RENO_WITHOUT_RESTART = "the kernel's", "reno", "reno, no restart after idle"
TCPS = (KERNELS, RENO, RENO_WITHOUT_RESTART)
"""What TCP is in both namespaces."""

NUM_EXCHANGES = 60
NUM_AFTER_PAUSES, PAUSE_S = 5, 1.0
READY_TIMEOUT_S, CONNECT_TIMEOUT_S, END_TIMEOUT_S = 60.0, 20.0, 10.0
SERVER, CLIENT = Identity.from_seed(b"echo server".ljust(32)), Identity.from_seed(b"echo client".ljust(32))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process of the measurement lives, and by what it speaks."""

    host: Host
    channel: str
    tcp: str

    def enter(self) -> None:
        """Move the calling process, which has one thread, into its namespace."""
        enter_network(self.host.namespace)
        if self.tcp != KERNELS:
            set_congestion_control("reno")
        if self.tcp == RENO_WITHOUT_RESTART:
            keep_window_when_idle()


@dataclass(frozen=True, slots=True)
class Echoes:
    """`first`, `warm` (median), `after_pause` (median): times of an exchange over the link's round trip."""

    channel: str
    tcp: str
    size_bytes: int
    first: float
    warm: float
    after_pause: float


@asynccontextmanager
async def _listener(place: Place) -> AsyncIterator[Listener]:
    if place.channel == "direct":
        listener: Listener = await listen_direct(SERVER, place.host.address, 0, answer_with_zeros, os.urandom)
        try:
            yield listener
        finally:
            await listener.aclose()
        return
    p2pd = await start_p2pd(SERVER, P2pdSettings(host=place.host.address))
    try:
        listener = await listen_libp2p(SERVER, p2pd, answer_with_zeros, os.urandom)
        try:
            yield listener
        finally:
            await listener.aclose()
    finally:
        await p2pd.aclose()


@asynccontextmanager
async def _connector(place: Place) -> AsyncIterator[Connector]:
    if place.channel == "direct":
        direct = DirectConnector(CLIENT, os.urandom)
        try:
            yield direct
        finally:
            await direct.aclose()
        return
    p2pd = await start_p2pd(CLIENT, P2pdSettings(host=place.host.address))
    libp2p = Libp2pConnector(CLIENT, p2pd, os.urandom)
    try:
        yield libp2p
    finally:
        await libp2p.aclose()
        await p2pd.aclose()


def _serve(place: Place, pipe: Connection) -> None:
    async def serve() -> None:
        async with _listener(place) as listener:
            pipe.send(listener.addresses)
            await asyncio.to_thread(pipe.poll, None)  # until the parent closes its end, also by dying

    place.enter()
    run_in_uvloop(serve())


def _ask(place: Place, addresses: Sequence[str], pipe: Connection) -> None:
    place.enter()
    pipe.send(run_in_uvloop(_measure(place, addresses)))


async def _measure(place: Place, addresses: Sequence[str]) -> list[Echoes]:
    """A channel for each size: a window that one size opened is not there for the next."""
    found = []
    for shape in SHAPES:
        async with _connector(place) as connector:
            channel = await connector.connect(SERVER.peer, addresses, CONNECT_TIMEOUT_S)
            times = [taken for taken, _ in await exchange_times(channel, shape, NUM_EXCHANGES, DType.BF16)]
            late = []
            for _ in range(NUM_AFTER_PAUSES):
                await asyncio.sleep(PAUSE_S)
                late += [taken for taken, _ in await exchange_times(channel, shape, 1, DType.BF16)]
            warm = statistics.median(times[NUM_EXCHANGES // 2 :])
            rtts = [1000 * taken_s / RTT_MS for taken_s in (times[0], warm, statistics.median(late))]
            await channel.aclose()
        found.append(Echoes(place.channel, place.tcp, shape.num_bytes, *rtts))
    return found


async def _echoes(context: ForkServerContext, channel: str, tcp: str) -> list[Echoes]:
    async with open_network(context, [Link(RTT_MS)] * 2, 0) as network:
        client, server = (Place(host, channel, tcp) for host in network.hosts[:2])
        with _Child[tuple[str, ...]](context, _serve, server) as serving:
            addresses = await serving.said()
            with _Child[list[Echoes]](context, _ask, client, addresses) as asking:
                return await asking.said()


class _Child(Generic[Said]):
    """A process that says one thing; leaving the context ends it, by force if need be."""

    def __init__(self, context: ForkServerContext, main: Callable[..., None], *args: object) -> None:
        self._pipe, self._theirs = context.Pipe()
        self._process = context.Process(target=main, args=(*args, self._theirs), daemon=True)

    def __enter__(self) -> "_Child[Said]":
        self._process.start()
        self._theirs.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(END_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()

    async def said(self) -> Said:
        """What the process said.

        Raises:
            ConnectFailed: nothing in time, or it ended before.
        """
        if not await asyncio.to_thread(self._pipe.poll, READY_TIMEOUT_S):
            raise ConnectFailed(f"a process of the measurement said nothing in {READY_TIMEOUT_S:.0f} s")
        try:
            said: Said = self._pipe.recv()
        except EOFError as error:
            raise ConnectFailed("a process of the measurement ended before it said anything") from error
        return said


async def main() -> dict[str, object]:
    """Both channels with each TCP, one after another."""
    context = start_fork_server()
    rows = [asdict(row) for tcp in TCPS for channel in CHANNELS for row in await _echoes(context, channel, tcp)]
    found = {"kernel": asdict(read_tcp_kernel()), "rtt_ms": RTT_MS, "rows": rows}
    return {"machine": describe_machine(), "commit": git_commit(), **found}


if __name__ == "__main__":
    if reason := why_no_namespaces():
        print(f"no network namespaces: {reason}", file=sys.stderr)
        raise SystemExit(2)
    print(json.dumps(asyncio.run(main()), indent=2))
