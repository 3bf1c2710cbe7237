"""Workers: order, bounds, cancellation, closing."""

import asyncio
import threading

import pytest

from shoal.experts.worker import ComputeWorker, InlineWorker, Worker
from shoal.protocol.errors import Busy, Draining


class Gate:
    """A job that runs until it is let go."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.released = threading.Event()

    def run(self, result: int) -> int:
        self.started.set()
        assert self.released.wait(60)
        return result


async def _until(event: threading.Event) -> None:
    await asyncio.to_thread(event.wait, 60)


def _fail() -> None:
    raise ValueError("of the job")


@pytest.mark.parametrize("worker_type", [ComputeWorker, InlineWorker])
def test_a_job_s_result_or_error_comes_back_and_a_closed_worker_takes_none(worker_type: type[Worker]) -> None:
    async def main() -> None:
        worker = worker_type()
        assert await worker.run(divmod, 17, 5) == (3, 2)
        with pytest.raises(ValueError, match="of the job"):
            await worker.run(_fail)
        await worker.aclose()
        with pytest.raises(Draining):
            await worker.run(divmod, 17, 5)
        await worker.aclose()

    asyncio.run(main())


def test_jobs_run_one_after_another_on_one_thread_that_is_not_the_loop_s() -> None:
    async def main() -> None:
        worker = ComputeWorker("numbers")
        order: list[int] = []
        async with asyncio.TaskGroup() as group:
            jobs = [group.create_task(worker.run(_note, order, i)) for i in range(20)]
        assert order == list(range(20))
        assert {job.result() for job in jobs} == {jobs[0].result()}
        assert jobs[0].result() != threading.get_ident()
        await worker.aclose()

    asyncio.run(main())


def _note(order: list[int], i: int) -> int:
    order.append(i)
    return threading.get_ident()


def test_a_full_worker_is_busy_at_once_and_free_again_afterwards() -> None:
    async def main() -> None:
        worker, gate = ComputeWorker(max_pending=2), Gate()
        jobs = [asyncio.create_task(worker.run(gate.run, i)) for i in range(2)]
        await _until(gate.started)
        with pytest.raises(Busy, match="worker compute is full") as caught:
            await worker.run(gate.run, 3)
        assert caught.value.retry_after_s > 0
        gate.released.set()
        assert await asyncio.gather(*jobs) == [0, 1]
        assert await worker.run(gate.run, 4) == 4
        await worker.aclose()

    asyncio.run(main())


def test_a_waiting_job_that_is_cancelled_never_runs_and_gives_its_place_back() -> None:
    async def main() -> None:
        worker, gate, order = ComputeWorker(max_pending=2), Gate(), list[int]()
        running = asyncio.create_task(worker.run(gate.run, 1))
        await _until(gate.started)
        waiting = asyncio.create_task(worker.run(_note, order, 2))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        third = asyncio.create_task(worker.run(_note, order, 3))
        await asyncio.sleep(0)
        gate.released.set()
        await asyncio.gather(running, third)
        assert order == [3]
        await worker.aclose()

    asyncio.run(main())


def test_a_running_job_that_is_cancelled_keeps_its_place_until_it_ends() -> None:
    async def main() -> None:
        worker, gate = ComputeWorker(max_pending=1), Gate()
        running = asyncio.create_task(worker.run(gate.run, 1))
        await _until(gate.started)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        with pytest.raises(Busy):
            await worker.run(gate.run, 2)
        gate.released.set()
        await worker.aclose()

    asyncio.run(main())


def test_closing_waits_for_pending_jobs() -> None:
    async def main() -> None:
        worker, gate = ComputeWorker(), Gate()
        jobs = [asyncio.create_task(worker.run(gate.run, i)) for i in range(3)]
        await _until(gate.started)
        closing = asyncio.create_task(worker.aclose())
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            await worker.run(gate.run, 4)
        assert not closing.done()
        gate.released.set()
        await closing
        assert await asyncio.gather(*jobs) == [0, 1, 2]

    asyncio.run(main())


def test_an_inline_job_lets_others_run_first() -> None:
    async def main() -> None:
        order: list[str] = []
        worker = InlineWorker()
        asyncio.get_running_loop().call_soon(order.append, "other")
        await worker.run(order.append, "job")
        assert order == ["other", "job"]

    asyncio.run(main())
