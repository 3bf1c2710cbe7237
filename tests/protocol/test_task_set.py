"""Tasks with an owner end with it, in order."""

import asyncio

import pytest

from shoal.protocol.net.task_set import TaskSet


def test_closing_cancels_the_oldest_first_and_waits_for_all() -> None:
    order: list[int] = []

    async def wait(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            order.append(number)

    async def main() -> int:
        tasks = TaskSet()
        for number in range(40):
            tasks.start(wait(number), f"wait {number}")
        await tasks.aclose()
        return len(tasks)

    assert asyncio.run(main()) == 0
    assert order == list(range(40))


def test_what_has_ended_is_forgotten() -> None:
    async def end() -> None: ...

    async def main() -> int:
        tasks = TaskSet()
        tasks.start(end(), "end")
        for _ in range(3):
            await asyncio.sleep(0)
        return len(tasks)

    assert asyncio.run(main()) == 0


def test_an_error_that_a_task_did_not_report_reaches_whoever_closes() -> None:
    async def fail() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise LookupError("unreported")

    async def main() -> None:
        tasks = TaskSet()
        tasks.start(fail(), "fail")
        await tasks.aclose()

    with pytest.raises(LookupError, match="unreported"):
        asyncio.run(main())
