"""One kernel call for the requests of several clients to the same layer: each expert's weights are read once for all.

Between admission and the worker. A lone request goes straight to the kernel: no queue, no window, no added time. What
comes while the kernel runs waits in a fair queue (`fair_queue.py`); when the kernel is free, whose turn it is goes, and
with it those that share its experts (`joins`). Rows of a call are independent, so that answers have the same bits with
and without company; back ends that do not promise that (`ExpertBackend.is_row_exact`) get no batches. Work that nobody
waits for any more never reaches the kernel. Knows no sockets and no admission.
"""

import asyncio
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice

import torch

from shoal.experts.worker import Worker
from shoal.node.serving.batch_rows import Call, merge, split
from shoal.node.serving.fair_queue import FairQueue
from shoal.protocol.errors import CapacityError, DeadlineExceeded, Draining
from shoal.protocol.ids import PeerId
from shoal.protocol.net.task_set import TaskSet

MAX_BATCH_TOKENS = 64
"""Rows of x in a call for several requests: from there on arithmetic and not the reading of weights takes the time
(docs/LOG.md, expert kernels: 0.69 ms for one row, 0.98 for 8, 5.9 for 64), and company only makes everybody late."""

MAX_LOOKED_AT = 256
"""Waiting requests that are looked at for company: 50 us of the loop's time at most."""


@dataclass(frozen=True, slots=True)
class Computed:
    """result: f32[T, H]. `compute_s`: this request's part of the call's time, by pairs."""

    result: torch.Tensor
    compute_s: float


@dataclass(slots=True, eq=False)
class Job:
    """A request that was let in. `deadline`: the loop's time after which nobody waits for it."""

    peer: PeerId
    call: Call
    deadline: float
    answer: "asyncio.Future[Computed] | None" = field(default=None, repr=False)
    """Where the answer goes, for one that had to wait."""


RunCall = Callable[[Call], tuple[torch.Tensor, float]]
"""On the worker: the weighted sums f32[T, H] and the seconds that they took."""


@dataclass(slots=True)
class BatchCounts:
    """What a batcher has done."""

    num_calls: int = 0
    num_joined: int = 0
    """Requests that went with another; the first of each call not counted."""
    num_expired: int = 0
    """Requests whose deadline passed while they waited: dropped before the kernel."""


def joins(num_in_call: int, in_call: Set[int], experts: Set[int], num_waiting: int) -> bool:
    """Whether all together are done sooner if a request goes with a call.

    Time is that of reading experts: those new to the call delay everybody in it, those in it already are saved once for
    everybody who waits, the request itself included.
    """
    num_shared = len(in_call & experts)
    return num_in_call * (len(experts) - num_shared) < num_waiting * num_shared


class Batcher:
    """The queue before one worker.

    Limits: none of its own; what comes was admitted.
    """

    def __init__(self, worker: Worker, run_call: RunCall, *, is_joining: bool) -> None:
        """is_joining: whether requests may share a call; False for back ends whose rows depend on one another."""
        self._worker = worker
        self._run_call = run_call
        self._is_joining = is_joining
        self._waiting: FairQueue[Job] = FairQueue()
        self._tasks = TaskSet()
        self._is_busy = False
        self.counts = BatchCounts()

    async def run(self, job: Job) -> Computed:
        """Compute one request, alone or in company.

        Raises:
            DeadlineExceeded: it waited too long. Draining: `refuse_waiting`. Whatever worker or kernel raise.

        Cancellation: a request that still waits is never computed; one that runs goes on, its result is dropped.
        """
        if not self._is_busy:
            return await self._run_at_once(job)
        job.answer = asyncio.get_running_loop().create_future()
        self._waiting.push(job.peer, job.call.num_pairs, job)
        try:
            return await job.answer
        finally:
            self._waiting.discard(job)

    def refuse_waiting(self) -> None:
        """Refuse what waits for the kernel."""
        for job in list(self._waiting):
            self._waiting.discard(job)
            _fail(job, Draining("this node pauses"))

    async def aclose(self) -> None:
        """Refuse what waits, and end. A kernel call that runs goes on to its end."""
        self.refuse_waiting()
        await self._tasks.aclose()

    async def _run_at_once(self, job: Job) -> Computed:
        """Without queue, future or task: the way of a client alone."""
        self._is_busy = True
        try:
            computed = (await self._compute([job]))[0]
        except asyncio.CancelledError:
            self._tasks.start(self._until_free(), "kernel call without client")
            raise
        except BaseException:
            self._pass_on()
            raise
        self._pass_on()
        return computed

    async def _until_free(self) -> None:
        """A call whose client has gone still runs: nobody is sent to the worker, where deadlines mean nothing."""
        try:
            await self._worker.run(_nothing)
        except CapacityError:
            self.refuse_waiting()
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        """The kernel is free: what waits goes first, and nobody overtakes it."""
        self._is_busy = len(self._waiting) > 0
        if self._is_busy:
            self._tasks.start(self._run_next(), "batch")

    async def _run_next(self) -> None:
        """The task of one call from the queue."""
        batch = self._next_batch()
        try:
            if batch:
                await self._answer(batch)
        finally:
            for job in batch:
                _fail(job, Draining("this node ends"))  # only if it was cancelled: all others have their answers
            self._pass_on()

    async def _answer(self, batch: Sequence[Job]) -> None:
        """Compute a batch: the boundary at which errors become answers."""
        try:
            computed = await self._compute(batch)
        except Exception as error:  # the boundary: every client gets its answer, and the queue goes on
            if len(batch) == 1 or isinstance(error, CapacityError):
                for job in batch:
                    _fail(job, error)
            else:
                for job in batch:  # nobody fails for another: each by itself
                    await self._answer([job])
            return
        for job, each in zip(batch, computed, strict=True):
            if job.answer is not None and not job.answer.done():
                job.answer.set_result(each)

    async def _compute(self, batch: Sequence[Job]) -> list[Computed]:
        self.counts.num_calls += 1
        self.counts.num_joined += len(batch) - 1
        return await self._worker.run(self._on_worker, batch)

    def _on_worker(self, batch: Sequence[Job]) -> list[Computed]:
        calls = [job.call for job in batch]
        whole = merge(calls)
        result, compute_s = self._run_call(whole)
        second_per_pair = compute_s / whole.num_pairs
        return [
            Computed(part, second_per_pair * call.num_pairs)
            for part, call in zip(split(result, calls), calls, strict=True)
        ]

    def _next_batch(self) -> list[Job]:
        """Whose turn it is, and who goes along; empty if nobody waits any more."""
        now = asyncio.get_running_loop().time()
        while self._waiting:
            job = self._waiting.pop()
            if self._is_wanted(job, now):
                return [job, *(self._company(job, now) if self._is_joining else ())]
        return []

    def _company(self, first: Job, now: float) -> list[Job]:
        """Who goes with `first`, taken out of the queue."""
        company: list[Job] = []
        experts, num_tokens = set(first.call.experts), first.call.num_tokens
        for job in list(islice(self._waiting, MAX_LOOKED_AT)):
            call = job.call
            if (call.layer, call.rounding) != (first.call.layer, first.call.rounding):
                continue
            is_small = num_tokens + call.num_tokens <= MAX_BATCH_TOKENS
            if not is_small or not joins(1 + len(company), experts, set(call.experts), len(self._waiting)):
                continue
            self._waiting.discard(job)
            if self._is_wanted(job, now):
                company.append(job)
                experts.update(call.experts)
                num_tokens += call.num_tokens
        return company

    def _is_wanted(self, job: Job, now: float) -> bool:
        """False, and its client told, if the request's time is over."""
        if now < job.deadline:
            return True
        self.counts.num_expired += 1
        _fail(job, DeadlineExceeded("the deadline passed before its turn"))
        return False


def _nothing() -> None:
    """A worker's way of saying that it has come so far."""


def _fail(job: Job, error: Exception) -> None:
    if job.answer is not None and not job.answer.done():
        job.answer.set_exception(error)
