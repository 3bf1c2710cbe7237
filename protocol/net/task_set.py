"""Tasks with an owner: none outlives it, none is garbage-collected while it runs."""

import asyncio
from collections.abc import Coroutine


class TaskSet:
    """The tasks of one listener or channel; `aclose` cancels them, oldest first, and waits until they have ended.

    In order, and not by address as a set would have it: under a virtual clock what happens is the seed's alone.
    """

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], None] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, coroutine: Coroutine[object, object, None], name: str) -> None:
        """Run `coroutine`, which reports its own errors."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)

    async def aclose(self) -> None:
        """Cancel every task and wait for their ends; an error that a task did not report is raised here."""
        await asyncio.sleep(0)  # a task cancelled before its first step would not close what it was given
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
