"""Where kernels run: one worker thread per device, so that the event loop never waits for arithmetic.

Knows callables; knows no experts and no requests. `InlineWorker` has the same face and runs in the loop, for the
virtual clock, where a thread would be a second, unseeded clock.
"""

import asyncio
import atexit
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar, TypeVarTuple

from shoal.protocol.errors import Busy, Draining

Result = TypeVar("Result")
Args = TypeVarTuple("Args")

MAX_PENDING = 64
"""Jobs of a worker, the running one included: one micro-batch of each request that a peer may have in flight."""

BUSY_RETRY_AFTER_S = 0.1
"""What a full worker asks for: a decode micro-batch takes some milliseconds, so a full queue is short by then."""


class Worker(Protocol):
    """Runs functions one after another on a device."""

    async def run(self, fn: Callable[[*Args], Result], *args: *Args) -> Result:
        """Return fn(*args), computed on the worker, in the order of the calls.

        *Cancellation:* a job that still waits is never started; one that runs goes on to its end, its result is
        dropped, and it keeps its place among the pending jobs until then (a thread cannot be interrupted).
        *Limits:* a fixed number of pending jobs; one more is refused at once.

        Raises:
            Busy: as many jobs are pending as the worker allows. Draining: the worker was closed. Whatever fn raises.
        """

    async def aclose(self) -> None:
        """Refuse new jobs and return when the pending ones have ended.

        *Cancellation:* the worker stays closed to new jobs; pending ones go on.
        """


class ComputeWorker(Worker):
    """A worker thread of its own. Made for one event loop; several loops may share it.

    Not an executor of the standard library: its futures and their locks, made twice over for asyncio, cost a job 25 us
    of a decode step's 300.
    """

    def __init__(self, name: str = "compute", *, max_pending: int = MAX_PENDING) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._places = threading.BoundedSemaphore(max_pending)
        self._name = name
        self._is_closed = False
        self._thread: threading.Thread | None = None

    async def run(self, fn: Callable[[*Args], Result], *args: *Args) -> Result:
        if self._is_closed:
            raise Draining(f"worker {self._name} is closed")
        if not self._places.acquire(blocking=False):
            raise Busy(f"worker {self._name} is full", BUSY_RETRY_AFTER_S)
        if self._thread is None:
            self._start()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Result] = loop.create_future()
        job = _Job(partial(fn, *args), loop, answer)
        self._jobs.put(job)
        try:
            return await answer
        except asyncio.CancelledError:
            if job.claim():  # it waited still, and never will be started
                self._places.release()
            raise

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._jobs.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
            atexit.unregister(self._end)

    def _start(self) -> None:
        # a daemon, so that a program that forgot to close us can end; `_end` waits for the job that runs
        self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        self._thread.start()
        atexit.register(self._end)

    def _end(self) -> None:
        """The program ends and nobody has closed us."""
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        """The thread."""
        while (job := self._jobs.get()) is not None:
            if job.claim():
                job.run(self._places)
            del job  # or its arguments would live until the next one comes


class _Job:
    """A call that waits for the thread."""

    __slots__ = ("_answer", "_call", "_claims", "_loop")

    def __init__(
        self, call: Callable[[], object], loop: asyncio.AbstractEventLoop, answer: asyncio.Future[Any]
    ) -> None:
        self._call = call
        self._loop = loop
        self._answer = answer
        self._claims = [True]

    def claim(self) -> bool:
        """Whether it is the caller's, to run or to drop; only the first of two threads hears yes."""
        try:
            return self._claims.pop()
        except IndexError:
            return False

    def run(self, places: threading.BoundedSemaphore) -> None:
        """Call it, give its place back and tell who waits."""
        result: object = None
        error: BaseException | None = None
        try:
            result = self._call()
        except BaseException as failure:  # the boundary of the thread: whoever waits is told
            error = failure
        places.release()
        with suppress(RuntimeError):  # the loop has ended, and with it whoever waited
            self._loop.call_soon_threadsafe(self._tell, result, error)
        del error  # which refers to this call, by its traceback

    def _tell(self, result: object, error: BaseException | None) -> None:
        if self._answer.done():  # cancelled
            return
        if error is None:
            self._answer.set_result(result)
        else:
            self._answer.set_exception(error)


class InlineWorker(Worker):
    """Runs each job at once in the event loop; nothing is ever pending."""

    def __init__(self) -> None:
        self._is_closed = False

    async def run(self, fn: Callable[[*Args], Result], *args: *Args) -> Result:
        await asyncio.sleep(0)  # a checkpoint, as with a thread: others run before the result is there
        if self._is_closed:
            raise Draining("worker is closed")
        return fn(*args)

    async def aclose(self) -> None:
        self._is_closed = True
