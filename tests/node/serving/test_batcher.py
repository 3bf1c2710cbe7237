"""Company changes no bit, costs a lone client nothing, and nobody's answer, failure or deadline becomes another's."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar, TypeVarTuple

import pytest
import torch

from shoal.experts.backend import ExpertBackend, PackedExpert
from shoal.experts.choose_backend import KernelChoice, choose_backend
from shoal.experts.cpu_backend import CpuBackend
from shoal.experts.family import ExpertSpec
from shoal.experts.specs import PROJECTIONS
from shoal.experts.weight_formats import quantize_expert
from shoal.experts.worker import ComputeWorker, InlineWorker, Worker
from shoal.kernels import cpu
from shoal.node.serving.batch_rows import Call, merge, split
from shoal.node.serving.batcher import MAX_BATCH_TOKENS, Batcher, Computed, Job, joins
from shoal.protocol.errors import DeadlineExceeded, Draining, InvalidRequest
from shoal.protocol.ids import PeerId
from shoal.protocol.messages import Rounding, WeightFormat
from shoal.protocol.tensors import Rows

Result = TypeVar("Result")
Args = TypeVarTuple("Args")

FOREVER = float("inf")
HIDDEN, NUM_EXPERTS = 128, 8
SPEC = ExpertSpec(hidden=HIDDEN, inter=64)
FORMATS = (WeightFormat.BF16, WeightFormat.FP8_BLOCK, WeightFormat.INT8_G128, WeightFormat.INT4_G32)
ISAS = (*cpu.available_isas(), cpu.Isa.AMX_EMULATED) if cpu.is_available() else ()


class HeldWorker(Worker):
    """Runs jobs when it is told to."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.num_started = 0

    async def run(self, fn: Callable[[*Args], Result], *args: *Args) -> Result:
        self.num_started += 1
        await self.open.wait()
        return fn(*args)

    async def aclose(self) -> None:
        """Nothing to end."""


def a_call(rng: random.Random, num_tokens: int = 1, experts: Sequence[int] | None = None, layer: int = 3) -> Call:
    """Random rows for random experts, each of which has at least one pair."""
    chosen = tuple(sorted(experts if experts is not None else rng.sample(range(8), rng.randint(1, 4))))
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    picked = [sorted(rng.sample(range(num_tokens), rng.randint(1, num_tokens))) for _ in chosen]
    offsets = [0]
    for rows in picked:
        offsets.append(offsets[-1] + len(rows))
    row_idx = torch.tensor([row for rows in picked for row in rows])
    weights = torch.rand(offsets[-1], generator=generator)
    return Call(
        layer, 0, chosen, Rows(torch.randn(num_tokens, HIDDEN, generator=generator), row_idx, weights, tuple(offsets))
    )


def a_sum(call: Call) -> tuple[torch.Tensor, float]:
    """A kernel of tests: expert e multiplies by e + 1; the answer tells whose row it was."""
    rows = call.rows
    result = torch.zeros(call.num_tokens, HIDDEN)
    for place, expert in enumerate(call.experts):
        for pair in range(rows.offsets[place], rows.offsets[place + 1]):
            row = int(rows.row_idx[pair])
            result[row] += rows.topk_weights[pair] * (expert + 1) * rows.x[row]
    return result, 1.0


def job(call: Call, peer: str = "a", deadline: float = FOREVER) -> Job:
    return Job(PeerId(peer), call, deadline)


async def turns() -> None:
    """Let every task that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def behind_a_running_call(
    batcher: Batcher, worker: HeldWorker, jobs: Sequence[Job]
) -> tuple["asyncio.Task[Computed]", list["asyncio.Task[Computed]"]]:
    """A call that holds the kernel, and jobs that wait for it."""
    first = asyncio.create_task(batcher.run(job(a_call(random.Random(0)), "first")))
    await turns()
    tasks = [asyncio.create_task(batcher.run(each)) for each in jobs]
    await turns()
    assert worker.num_started == 1
    return first, tasks


def run(test: Callable[[], Coroutine[object, object, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_merged_call_gives_each_its_own_rows() -> None:
    rng = random.Random(1)
    for _ in range(50):
        calls = [a_call(rng, rng.randint(1, 5)) for _ in range(rng.randint(1, 5))]
        whole, _ = a_sum(merge(calls))
        for part, call in zip(split(whole, calls), calls, strict=True):
            assert torch.equal(part, a_sum(call)[0])


def packed_experts(backend: ExpertBackend, weight_format: WeightFormat) -> list[PackedExpert]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((SPEC.inter, HIDDEN), (SPEC.inter, HIDDEN), (HIDDEN, SPEC.inter))
    plain = [
        dict(zip(PROJECTIONS, (torch.randn(shape, generator=generator) for shape in shapes), strict=True))
        for _ in range(NUM_EXPERTS)
    ]
    return [backend.pack(SPEC, quantize_expert(each, weight_format, "a test")) for each in plain]


@pytest.mark.skipif(not ISAS, reason="needs the C++ kernels, which were not built")
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("weight_format", FORMATS)
def test_the_kernels_give_the_same_bits_with_and_without_company(weight_format: WeightFormat, isa: cpu.Isa) -> None:
    rng = random.Random(2)
    for threads, rounding in ((1, Rounding.FP32), (2, Rounding.BF16)):
        backend = CpuBackend(cpu.CpuKernels(threads, isa))
        assert backend.is_row_exact
        experts = packed_experts(backend, weight_format)

        def kernel(call: Call) -> torch.Tensor:
            rows, packed = call.rows, [experts[expert] for expert in call.experts]  # noqa: B023
            x = rows.x.to(torch.bfloat16) if rounding is Rounding.BF16 else rows.x  # noqa: B023
            return backend.run(packed, x, rows.row_idx, rows.offsets, rows.topk_weights, rounding)  # noqa: B023

        for _ in range(12):
            calls = [a_call(rng, rng.choice((1, 1, 2, 5, 17))) for _ in range(rng.randint(2, 6))]
            for part, call in zip(split(kernel(merge(calls)), calls), calls, strict=True):
                assert torch.equal(part, kernel(call))


def test_a_client_alone_waits_for_nothing_and_has_a_call_to_itself() -> None:
    async def test() -> None:
        batcher = Batcher(InlineWorker(), a_sum, is_joining=True)
        rng = random.Random(3)
        for _ in range(5):
            call = a_call(rng)
            answer = await batcher.run(job(call))
            assert torch.equal(answer.result, a_sum(call)[0])
            assert not batcher._tasks
        assert (batcher.counts.num_calls, batcher.counts.num_joined) == (5, 0)

    run(test)


def test_requests_that_come_while_the_kernel_runs_share_the_next_call_and_get_their_own_rows() -> None:
    async def test() -> None:
        rng, worker = random.Random(4), HeldWorker()
        batcher = Batcher(worker, a_sum, is_joining=True)
        calls = [a_call(rng, experts=(1, 2, 5)) for _ in range(6)]
        first, tasks = await behind_a_running_call(batcher, worker, [job(c, f"peer {i}") for i, c in enumerate(calls)])
        worker.open.set()
        await first
        for task, call in zip(tasks, calls, strict=True):
            assert torch.equal((await task).result, a_sum(call)[0])
        assert batcher.counts.num_calls == 2
        assert batcher.counts.num_joined == 5
        await batcher.aclose()

    run(test)


def test_the_time_of_a_shared_call_is_divided_among_those_who_shared_it() -> None:
    async def test() -> None:
        worker = HeldWorker()
        batcher = Batcher(worker, a_sum, is_joining=True)
        calls = [a_call(random.Random(seed), experts=(1,)) for seed in range(4)]
        first, tasks = await behind_a_running_call(batcher, worker, [job(call) for call in calls])
        worker.open.set()
        await first
        assert sum([(await task).compute_s for task in tasks]) == pytest.approx(1.0)
        await batcher.aclose()

    run(test)


@pytest.mark.parametrize(
    ("calls", "num_calls"),
    [
        ([(1, {"layer": 3}), (1, {"layer": 4})], 2),
        ([(1, {"experts": (0, 1)}), (1, {"experts": (6, 7)})], 2),
        ([(MAX_BATCH_TOKENS - 1, {"experts": (1,)}), (2, {"experts": (1,)})], 2),
        ([(MAX_BATCH_TOKENS - 1, {"experts": (1,)}), (1, {"experts": (1,)})], 1),
    ],
    ids=["another layer", "other experts", "too many rows", "just enough rows"],
)
def test_who_gains_nothing_by_company_goes_alone(calls: list[tuple[int, dict[str, Any]]], num_calls: int) -> None:
    async def test() -> None:
        rng, worker = random.Random(5), HeldWorker()
        batcher = Batcher(worker, a_sum, is_joining=True)
        jobs = [
            job(a_call(rng, num_tokens, words.get("experts", (1,)), words.get("layer", 3)))
            for num_tokens, words in calls
        ]
        first, tasks = await behind_a_running_call(batcher, worker, jobs)
        worker.open.set()
        await asyncio.gather(first, *tasks)
        assert batcher.counts.num_calls == 1 + num_calls
        await batcher.aclose()

    run(test)


def test_a_back_end_whose_rows_depend_on_each_other_gets_one_request_at_a_time() -> None:
    assert not choose_backend(KernelChoice.REFERENCE, 1).is_row_exact

    async def test() -> None:
        worker = HeldWorker()
        batcher = Batcher(worker, a_sum, is_joining=False)
        jobs = [job(a_call(random.Random(seed), experts=(1,))) for seed in range(3)]
        first, tasks = await behind_a_running_call(batcher, worker, jobs)
        worker.open.set()
        await asyncio.gather(first, *tasks)
        assert (batcher.counts.num_calls, batcher.counts.num_joined) == (4, 0)
        await batcher.aclose()

    run(test)


def test_company_is_worth_it_when_what_is_saved_is_more_than_what_is_delayed() -> None:
    assert joins(1, {1, 2}, {1, 2}, 1)
    assert joins(1, {1, 2, 3}, {1, 2, 4}, 1)
    assert not joins(1, {1, 2}, {2, 3}, 1)
    assert joins(1, {1, 2}, {2, 3}, 2)  # somebody else waits behind and is served sooner
    assert not joins(5, {1, 2, 3}, {1, 2, 4}, 2)  # five would wait for one's expert
    assert not joins(1, {1}, {2}, 100)


def test_what_nobody_waits_for_any_more_never_reaches_the_kernel() -> None:
    async def test() -> None:
        worker, computed = HeldWorker(), list[int]()

        def kernel(call: Call) -> tuple[torch.Tensor, float]:
            computed.append(call.layer)
            return a_sum(call)

        batcher, rng = Batcher(worker, kernel, is_joining=True), random.Random(6)
        jobs = [job(a_call(rng, layer=11), deadline=-1.0), job(a_call(rng, layer=12)), job(a_call(rng, layer=13))]
        first, (expired, cancelled, served) = await behind_a_running_call(batcher, worker, jobs)
        cancelled.cancel()
        await turns()
        worker.open.set()
        await asyncio.gather(first, served)
        with pytest.raises(DeadlineExceeded):
            await expired
        assert computed == [3, 13]
        assert batcher.counts.num_expired == 1
        await batcher.aclose()

    run(test)


def test_who_leaves_a_running_call_leaves_the_kernel_to_the_next_only_when_it_is_free() -> None:
    async def test() -> None:
        worker = HeldWorker()
        batcher = Batcher(worker, a_sum, is_joining=True)
        first, (second,) = await behind_a_running_call(batcher, worker, [job(a_call(random.Random(7)))])
        first.cancel()
        await turns()
        assert not second.done()
        worker.open.set()
        assert (await second).compute_s > 0
        await batcher.aclose()

    run(test)


def test_a_request_that_fails_in_company_fails_alone() -> None:
    async def test() -> None:
        worker = HeldWorker()

        def kernel(call: Call) -> tuple[torch.Tensor, float]:
            if bool((call.rows.x == 666).any()):
                raise InvalidRequest("a row that the kernel does not like")
            return a_sum(call)

        batcher = Batcher(worker, kernel, is_joining=True)
        good, bad = (a_call(random.Random(seed), experts=(1,)) for seed in (8, 9))
        bad.rows.x[0, 0] = 666
        first, tasks = await behind_a_running_call(batcher, worker, [job(good), job(bad), job(good)])
        worker.open.set()
        await first
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[1], InvalidRequest)
        for result in (results[0], results[2]):
            assert isinstance(result, Computed)
            assert torch.equal(result.result, a_sum(good)[0])
        await batcher.aclose()

    run(test)


def test_the_end_of_a_node_refuses_what_waits() -> None:
    async def test() -> None:
        worker = HeldWorker()
        batcher = Batcher(worker, a_sum, is_joining=True)
        first, tasks = await behind_a_running_call(batcher, worker, [job(a_call(random.Random(s))) for s in range(3)])
        await batcher.aclose()
        for task in tasks:
            with pytest.raises(Draining):
                await task
        worker.open.set()
        await first

    run(test)


def test_random_clients_on_a_real_worker_get_what_they_get_alone() -> None:
    async def test() -> None:
        worker = ComputeWorker("test kernel")
        batcher, rng = Batcher(worker, a_sum, is_joining=True), random.Random(10)

        async def client(name: str, calls: Sequence[Call]) -> None:
            for call in calls:
                answer = await batcher.run(job(call, name))
                assert torch.equal(answer.result, a_sum(call)[0])

        clients = [[a_call(rng, rng.randint(1, 3)) for _ in range(20)] for _ in range(8)]
        await asyncio.gather(*(client(str(place), calls) for place, calls in enumerate(clients)))
        assert batcher.counts.num_calls + batcher.counts.num_joined == 160
        await batcher.aclose()
        await worker.aclose()

    run(test)
