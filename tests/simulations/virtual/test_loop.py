"""Virtual time jumps, a seed decides the schedule, and what can never end is said."""

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import pytest

from shoal.simulations.virtual import loop as virtual_loop
from shoal.simulations.virtual.loop import Deadlock, Livelock, TimeIsUp, run_virtual


def test_an_hour_of_waiting_takes_an_hour_of_virtual_time_and_none_of_ours() -> None:
    async def main() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    assert run_virtual(main, random.Random(0), 4000) == 3600


def order_of_tasks(seed: int) -> list[int]:
    async def main() -> list[int]:
        order: list[int] = []

        async def run(number: int) -> None:
            for _ in range(3):
                await asyncio.sleep(0)
                order.append(number)

        await asyncio.gather(*(run(number) for number in range(6)))
        return order

    return run_virtual(main, random.Random(seed), 1)


def test_the_same_seed_is_the_same_schedule_and_another_is_another() -> None:
    assert order_of_tasks(1) == order_of_tasks(1)
    assert len({tuple(order_of_tasks(seed)) for seed in range(20)}) == 20


OUTSIDE = random.Random()
"""Chance that is no seed's."""


def order_of_cancellation() -> list[int]:
    """Of the tasks of a TaskGroup, which keeps them in a set."""

    async def main() -> list[int]:
        order: list[int] = []
        kept: list[object] = []

        async def wait(number: int) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                order.append(number)

        async def fail() -> None:
            await asyncio.sleep(1)
            raise LookupError

        try:
            async with asyncio.TaskGroup() as group:
                for number in range(12):
                    kept.append(bytearray(OUTSIDE.randrange(4000)))  # so that no two runs lie alike in memory
                    group.create_task(wait(number))
                group.create_task(fail())
        except* LookupError:
            pass
        return order

    return run_virtual(main, random.Random(0), 10)


def test_the_tasks_of_a_group_are_cancelled_in_an_order_that_is_the_seeds_alone() -> None:
    assert len({tuple(order_of_cancellation()) for _ in range(30)}) == 1


def test_plain_callbacks_keep_their_order() -> None:
    async def main() -> list[int]:
        order: list[int] = []
        for number in range(50):
            asyncio.get_running_loop().call_soon(order.append, number)
        await asyncio.sleep(0.1)
        return order

    assert run_virtual(main, random.Random(3), 1) == list(range(50))


def test_a_deadlock_is_an_error() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run_virtual(main, random.Random(0), 10)


def test_too_much_virtual_time_is_an_error() -> None:
    async def main() -> None:
        await asyncio.sleep(11)

    with pytest.raises(TimeIsUp):
        run_virtual(main, random.Random(0), 10)


def test_polling_without_waiting_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_loop, "MAX_TURNS", 100)

    async def main() -> NoReturn:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0)

    with pytest.raises(Livelock):
        run_virtual(main, random.Random(0), 10)


def test_what_goes_to_a_thread_is_done_at_once_in_ours_and_takes_no_time() -> None:
    order: list[str] = []

    async def other() -> None:
        order.append("another task")

    async def main() -> float:
        waiting = asyncio.create_task(other())
        name = await asyncio.to_thread(threading.current_thread().name.upper)
        order.append(name)
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(divmod, 1, 0)
        await waiting
        return asyncio.get_running_loop().time()

    assert run_virtual(main, random.Random(0), 10) == 0
    assert order == ["another task", threading.current_thread().name.upper()]


def test_who_stops_waiting_for_a_thread_loses_its_result_and_nothing_else() -> None:
    async def main() -> list[int]:
        done: list[int] = []
        waiting = asyncio.create_task(asyncio.to_thread(done.append, 1))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return done

    assert run_virtual(main, random.Random(0), 10) == [1]


def test_an_executor_of_its_own_is_refused() -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as pool:
            await asyncio.get_running_loop().run_in_executor(pool, print)

    with pytest.raises(RuntimeError, match="second clock"):
        run_virtual(main, random.Random(0), 10)
