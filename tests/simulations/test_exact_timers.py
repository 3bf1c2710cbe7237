"""Delays that are made in user space end when they should and leave nothing open.

No timing is asserted but that nobody is woken early. Run: pytest tests/simulations/test_exact_timers.py
"""

import asyncio
import contextlib
import os
import sys
import time

import pytest
import uvloop

from shoal.simulations.exact_timers import EXACT, exact_loop, exact_sleep, waits_ms

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop, "exact": exact_loop}


def num_timers() -> int:
    """Open files of this process that are timers; others come and go meanwhile."""
    kinds = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            kinds.append(os.readlink(f"/proc/self/fd/{name}"))
    return kinds.count("anon_inode:[timerfd]")


@pytest.mark.parametrize("loop", LOOPS)
def test_nobody_is_woken_early(loop: str) -> None:
    async def woken() -> float:
        started = time.monotonic()
        await exact_sleep(0.0025)
        return time.monotonic() - started

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        assert runner.run(woken()) >= 0.0025
        assert len(runner.run(waits_ms(0.0, EXACT.sleep))) == 100


def test_no_time_at_all_is_over_at_once_and_many_wait_at_a_time() -> None:
    async def many() -> None:
        await exact_sleep(0.0)
        await exact_sleep(-1.0)
        await asyncio.gather(*(exact_sleep(each / 1e5) for each in range(100)))

    asyncio.run(many())


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: what is looked at is its timers' files")
def test_who_is_cancelled_leaves_no_file_open() -> None:
    async def cancelled() -> None:
        waiting = [asyncio.create_task(exact_sleep(600.0)) for _ in range(10)]
        await asyncio.sleep(0)
        assert num_timers() == 10
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert num_timers() == 0

    asyncio.run(cancelled())
