"""What a node gives under ten times the load it can bear, and what a thousand hostile connections cost honest clients.

A real node in a process of its own (`loaded_node.py`). Overload: the most answers a second that patient clients get,
then ten times as many requests a second from clients that know no patience. Hostility: the 99th percentile of honest
exchanges without and with a process (`hostile.py`) that holds connections of every bad kind. Every round measures both
sides of each ratio, so that a busy machine slows both.
"""

import asyncio
import os
import statistics
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any, cast

from shoal.protocol.errors import Busy, DeadlineExceeded, ShoalError
from shoal.protocol.identity import Identity
from shoal.protocol.messages import Dispatch
from shoal.protocol.net.channel import Channel
from shoal.protocol.net.direct import DirectConnector
from shoal.simulations.bench.hostile import Hostile, hostile_connections
from shoal.simulations.bench.loaded_node import SERVER, LoadedNode, NodeShape, loaded_node, request_of
from shoal.simulations.bench.machine import describe_machine, git_commit

DEADLINE_MS = 2000
CONNECT_TIMEOUT_S = 30.0

PATIENT_IN_FLIGHT = 2
"""Requests of a patient client at a time: with eight clients the kernel never waits for one."""

TICK_S = 0.005
"""How often the impatient send what is due."""

HONEST_PAUSE_S = 0.003
"""Between two requests of an honest client, as its trunk takes."""

SETTLE_S = 2.0
"""After the hostile process says that it has come: its first wave of handshakes is over."""


@dataclass(frozen=True, slots=True)
class OverloadSettings:
    """What is measured."""

    rounds: int = 5
    seconds: float = 4.0
    """Of each measurement."""
    num_clients: int = 8
    factor: float = 10.0
    num_hostile: int = 1000
    num_honest: int = 4
    shape: NodeShape = field(default_factory=NodeShape)
    num_tokens: int = 16
    """Rows of an overload request, for half of the node's experts: 20 ms of one core or so."""


@dataclass(slots=True)
class Tally:
    """What became of requests."""

    num_sent: int = 0
    num_answered: int = 0
    num_busy: int = 0
    num_late: int = 0
    num_failed: int = 0


@dataclass(frozen=True, slots=True)
class OverloadRound:
    """Rates in requests per second, shares of what was sent, memory in bytes."""

    peak: float
    offered: float
    goodput: float
    busy_share: float
    late_share: float
    failed_share: float
    memory_before: int
    memory_most: int

    @property
    def ratio(self) -> float:
        return self.goodput / self.peak


@dataclass(frozen=True, slots=True)
class HostileRound:
    """Honest exchanges, milliseconds. `num_open`: hostile connections that were open at the end; `num_tried`: all."""

    p50_without: float
    p50_with: float
    p99_without: float
    p99_with: float
    num_open: int
    num_tried: int

    @property
    def ratio(self) -> float:
        return self.p99_with / self.p99_without


async def bench_overload(settings: OverloadSettings) -> dict[str, object]:
    """Measure both, `rounds` times.

    Raises:
        ShoalError: the node could not be reached.
    """
    with loaded_node(settings.shape) as node:
        async with _clients(node, "impatient", settings.num_clients) as channels:
            await _patient(channels, settings, settings.seconds / 4)  # warm: caches, measured speed
            overload = [await _overload_round(node, channels, settings) for _ in range(settings.rounds)]
    with loaded_node(settings.shape) as node:
        async with _clients(node, "honest", settings.num_honest) as channels:
            await _honest(channels, settings, settings.seconds / 4)
            hostile = [await _hostile_round(node, channels, settings) for _ in range(settings.rounds)]
    return {
        "machine": describe_machine(),
        "commit": git_commit(),
        "settings": asdict(settings),
        "overload": [asdict(each) | {"ratio": each.ratio} for each in overload],
        "hostile": [asdict(each) | {"ratio": each.ratio} for each in hostile],
    }


@asynccontextmanager
async def _clients(node: LoadedNode, name: str, count: int) -> AsyncIterator[list[Channel]]:
    """Channels of as many clients, each with a key of its own."""
    seeds = [f"{name} {number}".encode().ljust(32) for number in range(count)]
    connectors = [DirectConnector(Identity.from_seed(seed), os.urandom) for seed in seeds]
    try:
        yield [await each.connect(SERVER.peer, [node.address], CONNECT_TIMEOUT_S) for each in connectors]
    finally:
        for connector in connectors:
            await connector.aclose()


async def _overload_round(node: LoadedNode, channels: Sequence[Channel], settings: OverloadSettings) -> OverloadRound:
    peak = (await _patient(channels, settings, settings.seconds)).num_answered / settings.seconds
    before, _ = await node.memory()
    tally = await _impatient(channels, settings, settings.factor * peak)
    _, most = await node.memory()
    return OverloadRound(
        peak=peak,
        offered=tally.num_sent / settings.seconds,
        goodput=tally.num_answered / settings.seconds,
        busy_share=tally.num_busy / max(1, tally.num_sent),
        late_share=tally.num_late / max(1, tally.num_sent),
        failed_share=tally.num_failed / max(1, tally.num_sent),
        memory_before=before,
        memory_most=most,
    )


async def _patient(channels: Sequence[Channel], settings: OverloadSettings, seconds: float) -> Tally:
    """Clients that send when they have an answer, and wait as long as BUSY asks."""
    tally, until = Tally(), perf_counter() + seconds
    message, body = _request(settings)

    async def client(channel: Channel) -> None:
        while perf_counter() < until:
            retry_after_s = await _exchange(channel, message, body, tally, until)
            await asyncio.sleep(retry_after_s)

    await asyncio.gather(*(client(channel) for channel in channels for _ in range(PATIENT_IN_FLIGHT)))
    return tally


async def _impatient(channels: Sequence[Channel], settings: OverloadSettings, per_s: float) -> Tally:
    """Clients that send at a rate, whatever they are told. Answers count while the time lasts."""
    tally, started = Tally(), perf_counter()
    until = started + settings.seconds
    message, body = _request(settings)
    async with asyncio.TaskGroup() as group:
        while (now := perf_counter()) < until:
            while tally.num_sent < (now - started) * per_s:
                channel = channels[tally.num_sent % len(channels)]
                tally.num_sent += 1
                group.create_task(_counted(channel, message, body, tally, until))
            await asyncio.sleep(TICK_S)
    return tally


def _request(settings: OverloadSettings) -> tuple[Dispatch, bytes]:
    return request_of(settings.shape, settings.num_tokens, range(settings.shape.num_experts // 2), DEADLINE_MS)


async def _counted(channel: Channel, message: Dispatch, body: bytes, tally: Tally, until: float) -> None:
    await _exchange(channel, message, body, tally, until)


async def _exchange(channel: Channel, message: Dispatch, body: bytes, tally: Tally, until: float) -> float:
    """One request, counted; the seconds that BUSY asked for."""
    try:
        await channel.request(message, [body])
    except Busy as error:
        tally.num_busy += 1
        return error.retry_after_s
    except DeadlineExceeded:
        tally.num_late += 1
    except ShoalError:
        tally.num_failed += 1
        await asyncio.sleep(TICK_S)
    else:
        tally.num_answered += perf_counter() <= until
    return 0.0


async def _hostile_round(node: LoadedNode, channels: Sequence[Channel], settings: OverloadSettings) -> HostileRound:
    without = await _honest(channels, settings, settings.seconds)
    with hostile_connections(SERVER.peer, node.address, settings.num_hostile) as hostile:
        await _all_tried(hostile, settings)
        during = await _honest(channels, settings, settings.seconds)
        count = await hostile.count()
    return HostileRound(
        _percentile(without, 50), _percentile(during, 50), _percentile(without, 99), _percentile(during, 99),
        count.num_open, count.num_tried,
    )  # fmt: skip


async def _all_tried(hostile: Hostile, settings: OverloadSettings) -> None:
    """Wait until every hostile connection was tried once."""
    while (await hostile.count()).num_tried < settings.num_hostile:  # noqa: ASYNC110  # another process
        await asyncio.sleep(TICK_S)
    await asyncio.sleep(min(SETTLE_S, settings.seconds))


async def _honest(channels: Sequence[Channel], settings: OverloadSettings, seconds: float) -> list[float]:
    """Sorted milliseconds of small exchanges, one after another at each client."""
    message, body = request_of(settings.shape, 1, range(2), DEADLINE_MS)
    times, until = list[float](), perf_counter() + seconds

    async def client(channel: Channel) -> None:
        while perf_counter() < until:
            started = perf_counter()
            await channel.request(message, [body])
            times.append(1000 * (perf_counter() - started))
            await asyncio.sleep(HONEST_PAUSE_S)

    await asyncio.gather(*(client(channel) for channel in channels))
    return sorted(times)


def _percentile(times: Sequence[float], percent: int) -> float:
    return times[min(len(times) - 1, len(times) * percent // 100)]


def table(result: dict[str, object]) -> str:
    """The result as Markdown: medians with least and most over the rounds."""
    overload, hostile = (cast(list[dict[str, Any]], result[name]) for name in ("overload", "hostile"))
    settings = cast(dict[str, Any], result["settings"])
    rows = [
        (f"answers/s at most, {settings['num_clients']} patient clients", overload, "peak", 0),
        ("requests/s offered", overload, "offered", 0),
        ("answers/s then", overload, "goodput", 0),
        ("ratio to the most", overload, "ratio", 2),
        ("refused with BUSY, share", overload, "busy_share", 3),
        ("too late, share", overload, "late_share", 3),
        ("otherwise failed, share", overload, "failed_share", 3),
        ("node's memory before, MB", overload, "memory_before", -6),
        ("node's memory at most, MB", overload, "memory_most", -6),
        ("honest p99 without hostile connections, ms", hostile, "p99_without", 2),
        (f"honest p99 with {settings['num_hostile']}, ms", hostile, "p99_with", 2),
        ("ratio", hostile, "ratio", 2),
        ("honest p50 without, ms", hostile, "p50_without", 2),
        ("honest p50 with, ms", hostile, "p50_with", 2),
        ("hostile connections open at the end", hostile, "num_open", 0),
        ("hostile connections tried", hostile, "num_tried", 0),
    ]
    head = [f"{len(overload)} rounds, commit {result['commit']}, {result['machine']}", ""]
    return "\n".join([*head, "| | median | range |", "|---|---|---|", *(_row(*row) for row in rows)])


def _row(name: str, rounds: Sequence[dict[str, Any]], field: str, digits: int) -> str:
    """`digits`: after the point; -6: in millions."""
    scale, digits = (1e-6, 0) if digits < 0 else (1.0, digits)
    values = sorted(float(each[field]) * scale for each in rounds)
    return f"| {name} | {statistics.median(values):.{digits}f} | {values[0]:.{digits}f}-{values[-1]:.{digits}f} |"
