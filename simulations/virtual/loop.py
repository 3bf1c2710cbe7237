"""An asyncio event loop that never waits: when nothing is ready, its clock jumps to the next timer.

The order in which ready tasks run is drawn from a generator, so one seed is one schedule and many seeds are many. Plain
callbacks keep their order, which asyncio promises. Sockets do not exist here, and no threads: what goes to one is done
at once, in the step that asks for it. Tasks hash by number: asyncio.TaskGroup cancels a set of them, and by memory
address, as objects hash otherwise, one seed would be several schedules.
"""

import asyncio
import itertools
import random
from asyncio import Handle, Task
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, TypeAlias, TypeVar, TypeVarTuple

Result = TypeVar("Result")
Args = TypeVarTuple("Args")
TaskBody: TypeAlias = Coroutine[Any, Any, Result] | Generator[Any, None, Result]

MAX_TURNS = 100_000
"""Turns of the loop at one moment: the busiest honest moment (all nodes start) takes a few hundred."""


class Deadlock(RuntimeError):
    """Every task waits for another: nothing is ready and no timer is set."""


class Livelock(RuntimeError):
    """Tasks run and run and no time passes: somebody polls without waiting."""


class TimeIsUp(RuntimeError):
    """More virtual time passed than a run may take."""


class VirtualLoop(asyncio.BaseEventLoop):
    """`time()` starts at 0 and advances only by jumps to the next timer."""

    _ready: deque[Handle]

    def __init__(self, schedule: random.Random, limit_s: float) -> None:
        """schedule: decides which ready task runs first. limit_s: virtual seconds after which TimeIsUp is raised."""
        super().__init__()
        self._now_s = 0.0
        self._schedule = schedule
        self._limit_s = limit_s
        self._turns = 0
        self._selector = _NoSockets(self._jump)
        self._numbers = itertools.count()
        self.set_task_factory(self._numbered)

    def time(self) -> float:
        return self._now_s

    def run_in_executor(  # type: ignore[override]  # the base class's is typed for threads
        self, executor: None, func: Callable[[*Args], Result], *args: *Args
    ) -> asyncio.Future[Result]:
        """A thread would be a second clock, which no seed decides: the work is done now, and takes no time. Its result
        is there at the loop's next turn, so that others come between.

        Raises:
            RuntimeError: an executor of its own, which may mean other threads than ours.
        """
        if executor is not None:
            raise RuntimeError("only the loop's own executor: another thread would be a second clock")
        future: asyncio.Future[Result] = self.create_future()
        done: asyncio.Future[Result] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # the boundary of a thread: it reaches whoever waits
            done.set_exception(error)
        self.call_soon(_hand_over, done, future)
        return future

    def _numbered(
        self, loop: asyncio.AbstractEventLoop, coroutine: TaskBody[Result], /, *, context: Context | None = None
    ) -> "_NumberedTask[Result]":
        return _NumberedTask(coroutine, loop=loop, number=next(self._numbers), context=context)

    def _jump(self, timeout_s: float | None) -> None:
        if timeout_s is None:
            raise Deadlock("nothing is ready and no timer is set")
        self._now_s += timeout_s
        self._turns = 0
        if self._now_s > self._limit_s:
            raise TimeIsUp(f"{self._limit_s} virtual seconds have passed")

    def _run_once(self) -> None:
        places = [place for place, handle in enumerate(self._ready) if _is_task_step(handle)]
        if len(places) > 1:  # with one there is nothing to draw
            self._shuffle(places)
        self._turns += 1
        if self._turns > MAX_TURNS:
            raise Livelock(f"{MAX_TURNS} turns of the loop at {self._now_s} s")
        super()._run_once()  # type: ignore[misc]  # not in typeshed, but stable since 3.4

    def _shuffle(self, places: list[int]) -> None:
        steps = [self._ready[place] for place in places]
        self._schedule.shuffle(steps)
        for place, step in zip(places, steps, strict=True):
            self._ready[place] = step

    def _process_events(self, event_list: object) -> None: ...

    def _write_to_self(self) -> None: ...


class _NumberedTask(Task[Result]):
    """A task that hashes by its number: how a set of tasks is walked depends on what was made, and not on where."""

    def __init__(
        self,
        coroutine: TaskBody[Result],
        *,
        loop: asyncio.AbstractEventLoop,
        number: int,
        context: Context | None,
    ) -> None:
        self._number = number  # first: the base class puts the task into a set
        super().__init__(coroutine, loop=loop, context=context)

    def __hash__(self) -> int:
        return self._number


class _NoSockets:
    """Where asyncio waits for sockets: here time jumps instead."""

    def __init__(self, jump: Callable[[float | None], None]) -> None:
        self._jump = jump

    def select(self, timeout_s: float | None) -> list[object]:
        if timeout_s != 0:
            self._jump(timeout_s)
        return []


def run_virtual(
    make: Callable[[], Coroutine[object, object, Result]], schedule: random.Random, limit_s: float
) -> Result:
    """Run a coroutine to its end on a loop of its own.

    Raises:
        Deadlock, TimeIsUp: it would never end. Whatever it raises.
    """
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(schedule, limit_s)) as runner:
        return runner.run(make())


def _hand_over(done: asyncio.Future[Result], waited_for: asyncio.Future[Result]) -> None:
    error = done.exception()
    if waited_for.cancelled():
        return
    if error is None:
        waited_for.set_result(done.result())
    else:
        waited_for.set_exception(error)


def _is_task_step(handle: Handle) -> bool:
    callback = getattr(handle, "_callback", None)
    return isinstance(getattr(callback, "__self__", None), Task)
