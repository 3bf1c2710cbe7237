"""Timers that are as exact as the kernel's own, for delays that a benchmark makes in user space.

uvloop counts in whole milliseconds and asyncio rounds up to them for epoll, so that half of 5 ms becomes 3 and a token
of four layers a fifth slower than its network (measured; `python -m shoal.simulations.exact_timers` shows it). Two ways
out: a whole event loop that waits by `select`, which counts microseconds, where no sockets matter; and single waits by
a file of the kernel's timer, which any loop watches, where uvloop must stay because its sockets are what is measured.
"""

import asyncio
import ctypes
import os
import selectors
import statistics
import struct
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Final

from shoal.simulations.wan.namespace import wake_on_time

CLOCK_MONOTONIC, TFD_NONBLOCK, TFD_CLOEXEC = 1, 0x800, 0x80000  # linux/time.h, linux/timerfd.h
SHORTEST_S: Final = 1e-6
"""A timer of no time at all is one that is not set (timerfd_create(2))."""

ASKED_MS = (0.5, 1.0, 2.5, 5.0, 10.0, 25.0)
NUM_WAITS = 100


def exact_loop() -> asyncio.AbstractEventLoop:
    """asyncio's loop with timers to some ten microseconds; 1,000 files at most (select(2)). The thread that makes it
    should run it: on Linux its timers lose their slack of 50 us."""
    if sys.platform == "linux":
        wake_on_time()
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


async def exact_sleep(seconds: float) -> None:
    """As `asyncio.sleep`, and exact under any loop; off Linux it is `asyncio.sleep`."""
    if seconds <= 0 or sys.platform != "linux":
        await asyncio.sleep(seconds)
        return
    loop, file = asyncio.get_running_loop(), _timer(seconds)
    rung = loop.create_future()
    loop.add_reader(file, _ring, rung)
    try:
        await rung
    finally:
        loop.remove_reader(file)
        os.close(file)


@dataclass(frozen=True, slots=True)
class Timers:
    """Time as whoever makes delays sees it."""

    now_s: Callable[[], float]
    sleep: Callable[[float], Coroutine[None, None, None]]


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


LOOPS = Timers(_loop_time, asyncio.sleep)
"""The loop's own, which may be virtual."""

EXACT = Timers(time.perf_counter, exact_sleep)


def _ring(rung: "asyncio.Future[None]") -> None:
    if not rung.done():
        rung.set_result(None)


def _timer(seconds: float) -> int:
    """A file that can be read once so much time has passed.

    Raises:
        OSError: no more files.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    file: int = libc.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
    if file < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    whole_s, nanoseconds = divmod(round(max(seconds, SHORTEST_S) * 1e9), 10**9)
    if libc.timerfd_settime(file, 0, struct.pack("@llll", 0, 0, whole_s, nanoseconds), None):
        os.close(file)
        raise OSError(ctypes.get_errno(), "timerfd_settime")
    return file


async def waits_ms(seconds: float, sleep: Callable[[float], Coroutine[None, None, None]]) -> list[float]:
    """What so many waits of so long take, sorted."""
    taken = []
    for _ in range(NUM_WAITS):
        started = time.perf_counter()
        await sleep(seconds)
        taken.append(1000 * (time.perf_counter() - started))
    return sorted(taken)


async def _measured(sleep: Callable[[float], Coroutine[None, None, None]]) -> list[str]:
    cells = []
    for asked_ms in ASKED_MS:
        taken = await waits_ms(asked_ms / 1000, sleep)
        cells.append(f"{statistics.median(taken):.2f} ({taken[-1 - NUM_WAITS // 100]:.2f})")
    return cells


def main() -> None:
    """A table: what was asked for, and what came of it, median and 99th percentile."""
    import uvloop

    ways: dict[str, tuple[Callable[[], asyncio.AbstractEventLoop], Callable[[float], Coroutine[None, None, None]]]] = {
        "uvloop, asyncio.sleep": (uvloop.new_event_loop, asyncio.sleep),
        "asyncio (epoll), asyncio.sleep": (asyncio.new_event_loop, asyncio.sleep),
        "uvloop, exact_sleep": (uvloop.new_event_loop, exact_sleep),
        "exact_loop, asyncio.sleep": (exact_loop, asyncio.sleep),
    }
    print("| ms asked | " + " | ".join(f"{asked_ms:g}" for asked_ms in ASKED_MS) + " |")
    print("|" + "---|" * (1 + len(ASKED_MS)))
    for name, (make, sleep) in ways.items():
        with asyncio.Runner(loop_factory=make) as runner:
            print(f"| {name} | " + " | ".join(runner.run(_measured(sleep))) + " |")


if __name__ == "__main__":
    main()
