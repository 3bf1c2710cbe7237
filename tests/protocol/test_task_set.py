"""Tasks with an owner end with it, in order."""

import asyncio

import pytest

from shoal.protocol.net.task_set import TaskSet


async def test_closing_cancels_the_oldest_first_and_waits_for_all() -> None:
    tasks = TaskSet()
    order: list[int] = []

    async def wait(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            order.append(number)

    for number in range(40):
        tasks.start(wait(number), f"wait {number}")
    await tasks.aclose()
    assert order == list(range(40))
    assert len(tasks) == 0


async def test_what_has_ended_is_forgotten() -> None:
    tasks = TaskSet()

    async def end() -> None: ...

    tasks.start(end(), "end")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(tasks) == 0


async def test_an_error_that_a_task_did_not_report_reaches_whoever_closes() -> None:
    tasks = TaskSet()

    async def fail() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise LookupError("unreported")

    tasks.start(fail(), "fail")
    with pytest.raises(LookupError, match="unreported"):
        await tasks.aclose()
