"""What one exchange costs beyond the kernel's time: DISPATCH out, PARTIAL back, on loopback, for each kind of channel.

Client and server are two processes with an event loop each, as in life. The handler computes nothing and reports what
it took itself, which is subtracted. Overhead is the product: 58 exchanges follow one another in every token.
"""

import asyncio
import os
import statistics
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from time import perf_counter, perf_counter_ns
from typing import TypeVar

import uvloop

from shoal.protocol.errors import ConnectFailed
from shoal.protocol.identity import Identity
from shoal.protocol.messages import Dispatch, DType, Partial
from shoal.protocol.net.channel import Channel, Connector, Handler, Listener, Reply, Request
from shoal.protocol.net.direct import DirectConnector, listen_direct
from shoal.protocol.net.libp2p import Libp2pConnector, listen_libp2p
from shoal.protocol.net.p2pd import P2pdSettings, start_p2pd
from shoal.simulations.bench.bare_tls import bare_connector, bare_listener
from shoal.simulations.bench.machine import congestion_control, describe_machine, git_commit, has_idle_restart
from shoal.simulations.bench.tls_floor import floor_connector, floor_listener

NUM_WARM_UP = 50
"""Exchanges before the clock counts: sockets, allocator and branch predictors settle."""

BASELINE = "bare tls"
"""Against what the table's last column compares."""

FLOOR = "tls floor"
"""OpenSSL on blocking sockets: what no channel with TLS can be faster than."""

READY_TIMEOUT_S = 60.0
"""A child imports torch (2 s) and may start a p2pd (0.4 s); a busy machine takes long."""

CONNECT_TIMEOUT_S = 10.0
DEADLINE_MS = 10_000
SERVER_SEED, CLIENT_SEED = b"bench server".ljust(32), b"bench client".ljust(32)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shape:
    """Hidden states of one exchange: bf16[num_tokens, hidden] out, f32[num_tokens, hidden] back."""

    num_tokens: int
    hidden: int

    @property
    def num_bytes(self) -> int:
        return self.num_tokens * self.hidden * 2


SHAPES = (Shape(1, 32), Shape(1, 7168), Shape(4, 8192), Shape(16, 8192), Shape(64, 8192))
"""64 bytes; one row of DeepSeek-V3 (14,336); 64 KiB; 256 KiB; 1 MiB."""


@dataclass(frozen=True, slots=True)
class ChannelKind:
    """How to make one kind of listener and connector, each in a process of its own."""

    name: str
    listener: Callable[[Identity, Handler], AbstractAsyncContextManager[Listener]]
    connector: Callable[[Identity], AbstractAsyncContextManager[Connector]]


@asynccontextmanager
async def _direct_listener(identity: Identity, handler: Handler) -> AsyncIterator[Listener]:
    listener = await listen_direct(identity, "127.0.0.1", 0, handler, os.urandom)
    try:
        yield listener
    finally:
        await listener.aclose()


@asynccontextmanager
async def _direct_connector(identity: Identity) -> AsyncIterator[Connector]:
    connector = DirectConnector(identity, os.urandom)
    try:
        yield connector
    finally:
        await connector.aclose()


@asynccontextmanager
async def _libp2p_listener(identity: Identity, handler: Handler) -> AsyncIterator[Listener]:
    p2pd = await start_p2pd(identity, P2pdSettings())
    try:
        listener = await listen_libp2p(identity, p2pd, handler, os.urandom)
        try:
            yield listener
        finally:
            await listener.aclose()
    finally:
        await p2pd.aclose()


@asynccontextmanager
async def _libp2p_connector(identity: Identity) -> AsyncIterator[Connector]:
    p2pd = await start_p2pd(identity, P2pdSettings())
    connector = Libp2pConnector(identity, p2pd, os.urandom)
    try:
        yield connector
    finally:
        await connector.aclose()
        await p2pd.aclose()


KINDS = {
    kind.name: kind
    for kind in (
        ChannelKind(FLOOR, floor_listener, floor_connector),
        ChannelKind(BASELINE, bare_listener, bare_connector),
        ChannelKind("direct", _direct_listener, _direct_connector),
        ChannelKind("libp2p", _libp2p_listener, _libp2p_connector),
    )
}


@dataclass(frozen=True, slots=True)
class Opened:
    """A channel to a holder that computes nothing. connect_ms: what connecting took."""

    channel: Channel
    connect_ms: float


@asynccontextmanager
async def open_channel(kind: str) -> AsyncIterator[Opened]:
    """Start a holder in a process of its own and connect to it.

    Raises:
        ConnectFailed: it did not come up.
    """
    with _ServerProcess(kind) as server:
        addresses = await server.addresses()
        async with KINDS[kind].connector(Identity.from_seed(CLIENT_SEED)) as connector:
            started = perf_counter()
            channel = await connector.connect(Identity.from_seed(SERVER_SEED).peer, addresses, CONNECT_TIMEOUT_S)
            yield Opened(channel, 1000 * (perf_counter() - started))


async def bench_wire(
    num_exchanges: int = 1000, kinds: Sequence[str] = tuple(KINDS), shapes: Sequence[Shape] = SHAPES
) -> dict[str, object]:
    """Measure every kind of channel with every shape; the result is one JSON object.

    Raises:
        ConnectFailed: a server process did not come up.
    """
    rows: list[dict[str, object]] = []
    for kind in kinds:
        async with open_channel(kind) as opened:
            for shape in shapes:
                overheads_ms = await _measure(opened.channel, shape, num_exchanges)
                rows.append({"channel": kind, "connect_ms": round(opened.connect_ms, 3), **_row(shape, overheads_ms)})
    return {
        "machine": describe_machine(),
        "commit": git_commit(),
        "congestion_control": congestion_control(),
        "tcp_slow_start_after_idle": has_idle_restart(),
        "event_loop": type(asyncio.get_running_loop()).__module__.partition(".")[0],
        "rows": rows,
    }


def table(result: dict[str, object]) -> str:
    """The result of `bench_wire` for people."""
    rows = result["rows"]
    if not isinstance(rows, list):
        raise TypeError("not a result of bench_wire")
    lines = [f"{result['machine']}, commit {result['commit']}, {result['congestion_control']}, {result['event_loop']}"]
    lines.append(f"{'channel':9} {'bytes':>8} {'reply':>8} {'min ms':>8} {'p50 ms':>8} {'p99 ms':>8}   x bare")
    bare = {row["bytes"]: row["overhead_ms_p50"] for row in rows if row["channel"] == BASELINE}
    for row in rows:
        ratio = f"{row['overhead_ms_p50'] / bare[row['bytes']]:.1f}" if row["bytes"] in bare else "-"
        lines.append(
            f"{row['channel']:9} {row['bytes']:8} {row['reply_bytes']:8} {row['overhead_ms_min']:8.3f}"
            f" {row['overhead_ms_p50']:8.3f} {row['overhead_ms_p99']:8.3f}   {ratio:>6}"
        )
    return "\n".join(lines)


async def exchange_times(
    channel: Channel, shape: Shape, num_exchanges: int, reply_dtype: int = 0
) -> list[tuple[float, float]]:
    """Seconds of exchanges one after another, and of each what its holder computed for. reply_dtype: 0: f32."""
    num_tokens, hidden = shape.num_tokens, shape.hidden
    message = Dispatch(
        bytes(32), 3, 1, 1, DType.BF16, num_tokens, hidden, (0,), (num_tokens,), DEADLINE_MS, reply_dtype
    )
    body = [bytes(message.body_size())]
    times: list[tuple[float, float]] = []
    for _ in range(num_exchanges):
        started = perf_counter()
        reply = await channel.request(message, body)
        times.append((perf_counter() - started, reply.message.compute_us / 1e6))
    return times


async def _measure(channel: Channel, shape: Shape, num_exchanges: int) -> list[float]:
    """Overheads of exchanges, in milliseconds."""
    times = await exchange_times(channel, shape, NUM_WARM_UP + num_exchanges)
    return [1000 * (taken_s - compute_s) for taken_s, compute_s in times[NUM_WARM_UP:]]


def _row(shape: Shape, overheads_ms: Sequence[float]) -> dict[str, object]:
    return {
        "bytes": shape.num_bytes,
        "reply_bytes": 2 * shape.num_bytes,
        "echo_of": f"bf16[{shape.num_tokens}, {shape.hidden}], answered by f32",
        "num_exchanges": len(overheads_ms),
        "overhead_ms_p50": round(statistics.median(overheads_ms), 4),
        "overhead_ms_p99": round(statistics.quantiles(overheads_ms, n=100, method="inclusive")[98], 4),
        "overhead_ms_min": round(min(overheads_ms), 4),
    }


async def answer_with_zeros(request: Request) -> Reply:
    """Zeros of the right shape, and how long it took to make them."""
    started_ns = perf_counter_ns()
    message = request.message
    body = bytes(message.reply_size())
    compute_us = (perf_counter_ns() - started_ns) // 1000
    partial = Partial(request.request_hash, message.num_tokens, message.hidden, 0, compute_us, message.reply_dtype)
    return Reply(partial, body)


class _ServerProcess:
    """A listener in a process of its own; leaving the context ends it, by force if need be."""

    def __init__(self, kind: str) -> None:
        context = get_context("spawn")
        self._pipe, child_pipe = context.Pipe()
        self._process = context.Process(target=_run_server, args=(kind, child_pipe), daemon=True)
        self._child_pipe = child_pipe

    def __enter__(self) -> "_ServerProcess":
        self._process.start()
        self._child_pipe.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()  # which tells the child to end
        self._process.join(CONNECT_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()

    async def addresses(self) -> tuple[str, ...]:
        """Where the server listens, once it does."""
        if not await asyncio.to_thread(self._pipe.poll, READY_TIMEOUT_S):
            raise ConnectFailed(f"the server process did not come up in {READY_TIMEOUT_S:.0f} s")
        try:
            addresses: tuple[str, ...] = self._pipe.recv()
        except EOFError as error:
            raise ConnectFailed("the server process ended before it listened") from error
        return addresses


def _run_server(kind: str, pipe: Connection) -> None:
    async def serve() -> None:
        async with KINDS[kind].listener(Identity.from_seed(SERVER_SEED), answer_with_zeros) as listener:
            pipe.send(listener.addresses)
            await asyncio.to_thread(_wait_for_end, pipe)

    run_in_uvloop(serve())


def _wait_for_end(pipe: Connection) -> None:
    """Block until the parent closes its end, also by dying."""
    try:
        pipe.recv()
    except EOFError:
        return


def run_in_uvloop(main: Coroutine[object, object, T]) -> T:
    """Run a program the way ours run."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
