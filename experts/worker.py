"""Where kernels run: one worker thread per device, so that the event loop never waits for arithmetic.

Knows callables; knows no experts and no requests. `InlineWorker` has the same face and runs in the loop, for the
virtual clock, where a thread would be a second, unseeded clock.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar, TypeVarTuple

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
    """A worker thread of its own. Made for one event loop; several loops may share it."""

    def __init__(self, name: str = "compute", *, max_pending: int = MAX_PENDING) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._places = threading.BoundedSemaphore(max_pending)
        self._name = name
        self._is_closed = False

    async def run(self, fn: Callable[[*Args], Result], *args: *Args) -> Result:
        if self._is_closed:
            raise Draining(f"worker {self._name} is closed")
        if not self._places.acquire(blocking=False):
            raise Busy(f"worker {self._name} is full", BUSY_RETRY_AFTER_S)
        job = self._executor.submit(fn, *args)
        job.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(job)

    async def aclose(self) -> None:
        self._is_closed = True
        await asyncio.to_thread(self._executor.shutdown, wait=True)


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
