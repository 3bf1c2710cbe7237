"""Processes that work through seeds, one at a time each. Knows nothing of what a seed is.

What all seeds of a process share (the model, the oracle's answers) is made once in each. When the process that asks is
gone, however it went, its workers read the end of their pipe and go too.
"""

import gc
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Generic, Self, TypeVar

NO_COLLECTION = 1_000_000
"""Objects after which Python looks for garbage in the middle of a seed all the same, a few hundred MB; an ordinary seed
makes a tenth. Between seeds all of it is collected."""

Result = TypeVar("Result")
Work = Callable[[], AbstractContextManager[Callable[[int], Result]]]
"""Called once in each process; what it yields is called with one seed after another. A top-level function."""


class WorkerDied(RuntimeError):
    """A process ended before it could take its first seed: another one would too."""


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    seed: int | None = None
    """What it works on."""
    is_ready: bool = False


class Crew(Generic[Result]):
    """`jobs` processes. Use as a context manager: at its end they are ended, whatever they are at."""

    def __init__(self, jobs: int, work: Work[Result], died: Callable[[int, int], Result]) -> None:
        """died: what a seed came to, given its number and the exit status of the process that died of it."""
        self._work = work
        self._died = died
        self._workers = [self._start() for _ in range(jobs)]

    def run(self, next_seed: Callable[[], int | None]) -> Iterator[Result]:
        """Results in the order in which they come. next_seed: what to do next; None: nothing, for now. Ends when
        nothing is left to do and nothing is being done.

        Raises:
            WorkerDied: see there.
        """
        self._await_ready(self._workers)
        while True:
            for worker in self._workers:
                if worker.seed is None and (seed := next_seed()) is not None:
                    worker.seed = seed
                    with suppress(BrokenPipeError):  # it has died since: its end is read below
                        worker.pipe.send(seed)
            busy = {worker.pipe: worker for worker in self._workers if worker.seed is not None}
            if not busy:
                return
            for pipe in wait(list(busy)):
                yield self._result(busy[pipe])  # type: ignore[index]  # typeshed: wait gives more kinds than it takes

    def _result(self, worker: _Worker) -> Result:
        seed, worker.seed = worker.seed, None
        try:
            result: Result = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            fresh = self._start()
            self._workers[self._workers.index(worker)] = fresh
            self._await_ready([fresh])
            return self._died(seed or 0, worker.process.exitcode or 0)
        return result

    def _start(self) -> _Worker:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(self._work, theirs), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    @staticmethod
    def _await_ready(workers: list[_Worker]) -> None:
        for worker in workers:
            if worker.is_ready:
                continue
            try:
                worker.pipe.recv()
                worker.is_ready = True
            except (EOFError, ConnectionResetError) as error:
                worker.process.join()
                raise WorkerDied(f"a worker ended with status {worker.process.exitcode} at its start") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()
            worker.process.close()
            worker.pipe.close()


def _serve(work: Work[Result], pipe: Connection) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for who asks
    with work() as run, pipe, suppress(EOFError, BrokenPipeError, ConnectionResetError):
        gc.collect()
        gc.freeze()  # what all seeds share is never looked through again
        gc.set_threshold(NO_COLLECTION)
        pipe.send(None)
        while True:
            pipe.send(run(pipe.recv()))
            gc.collect()
