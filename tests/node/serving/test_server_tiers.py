"""A request may ask for experts in memory and on disk at once: one answer, with the time that reading took in it."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import torch

from shoal.experts.backend import PackedExpert
from shoal.experts.choose_backend import KernelChoice, choose_backend
from shoal.experts.worker import InlineWorker
from shoal.node.serving.admission import Admission, AdmissionLimits
from shoal.node.serving.cold import ColdExperts, LatestExperts
from shoal.node.serving.server import ExpertServer, Held
from shoal.protocol.errors import DeadlineExceeded, NotHeld, PeerFailed
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.messages import Dispatch, DType, Rounding, WeightFormat
from shoal.protocol.net.channel import Reply, Request
from shoal.protocol.tensors import dispatch_body
from tests.node.serving.test_batcher import HIDDEN, NUM_EXPERTS, SPEC, packed_experts

LAYER, ROOT = LayerId(3), b"r" * 32
BACKEND = choose_backend(KernelChoice.REFERENCE, 1)
PACKED = packed_experts(BACKEND, WeightFormat.BF16)
READ_S = 2.0
"""By the server's clock, which only reading moves."""

X = torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(3))


class Disk:
    """Reads in no time of this machine and in two seconds of the server's clock."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.read: list[int] = []
        self.is_broken = False

    def clock(self) -> float:
        return self.now_s

    def load(self, layer: LayerId, expert: ExpertId) -> PackedExpert:
        if self.is_broken:
            raise OSError("gone")
        self.now_s += READ_S
        self.read.append(expert)
        return PACKED[expert]


def server_of(
    resident: range, on_disk: range, disk: Disk, capacity: int = NUM_EXPERTS, admission: Admission | None = None
) -> ExpertServer:
    held = Held(ROOT, WeightFormat.BF16, SPEC, {LAYER: {ExpertId(e): PACKED[e] for e in resident}})
    cold = ColdExperts({LAYER: tuple(map(ExpertId, on_disk))}, LatestExperts(disk.load, capacity, disk.clock))
    admission = admission or Admission(AdmissionLimits(), disk.clock)
    return ExpertServer(held, BACKEND, InlineWorker(), admission, disk.clock, cold, InlineWorker())


def request_of(experts: tuple[int, ...], wait_s: float = 60.0) -> Request:
    message = Dispatch(
        ROOT, LAYER, Rounding.FP32, WeightFormat.BF16, DType.F32, num_tokens=2, hidden=HIDDEN, experts=experts,
        num_rows=(2,) * len(experts), deadline_ms=60_000,
    )  # fmt: skip
    row_idx = torch.tensor([0, 1] * len(experts))
    body = dispatch_body(X, row_idx, torch.ones(len(row_idx)))
    return Request(PeerId("client"), message, body, bytes(32), asyncio.get_running_loop().time() + wait_s)


def run(server: ExpertServer, ask: Callable[[], Awaitable[Reply]]) -> Reply:
    async def main() -> Reply:
        try:
            return await ask()
        finally:
            await server.aclose()

    return asyncio.run(main())


def answer(server: ExpertServer, experts: tuple[int, ...]) -> Reply:
    return run(server, lambda: server.handle(request_of(experts)))


@pytest.mark.parametrize("capacity", [1, 2, NUM_EXPERTS])
def test_experts_in_memory_and_on_disk_answer_together_as_if_all_were_in_memory(capacity: int) -> None:
    disk, asked = Disk(), (1, 2, 5, 6, 7)
    mixed = answer(server_of(range(4), range(4, 8), disk, capacity), asked)
    plain = answer(server_of(range(8), range(0), Disk()), asked)
    sums, expected = (torch.frombuffer(bytearray(reply.body), dtype=torch.float32) for reply in (mixed, plain))
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-4)
    assert set(disk.read) == {5, 6, 7}


def test_reading_counts_as_computing_for_the_client_and_not_for_the_nodes_speed() -> None:
    disk = Disk()
    server = server_of(range(4), range(4, 8), disk)
    reply = answer(server, (1, 5, 6))
    assert reply.message.compute_us == 2 * READ_S * 1e6
    assert reply.message.queue_us == 0
    assert server.metrics.compute_s == 0


def test_what_is_in_memory_is_not_read_though_it_is_on_disk_too() -> None:
    disk = Disk()
    answer(server_of(range(8), range(8), disk), (1, 5))
    assert disk.read == []


def test_what_is_neither_in_memory_nor_on_disk_is_not_held() -> None:
    server = server_of(range(2), range(4, 6), Disk())
    with pytest.raises(NotHeld, match="expert 2 of layer 3"):
        answer(server, (1, 2, 4))


def test_a_broken_disk_is_the_nodes_failure_for_what_is_on_it_and_for_nothing_else() -> None:
    disk = Disk()
    disk.is_broken = True
    with pytest.raises(PeerFailed, match="can not be read from disk"):
        answer(server_of(range(4), range(4, 8), disk), (1, 5))
    assert answer(server_of(range(4), range(4, 8), disk), (1, 2)).message.num_tokens == 2


def test_a_request_whose_deadline_passed_while_its_experts_were_read_never_reaches_the_kernel() -> None:
    disk = Disk()
    server = server_of(range(4), range(4, 8), disk)

    with pytest.raises(DeadlineExceeded, match="read from disk"):
        run(server, lambda: server.handle(request_of((1, 5), wait_s=0.0)))
    assert disk.read == [5]
    assert server.metrics.requests_served == 0


def test_what_the_disk_will_take_counts_for_admission() -> None:
    disk, seen = Disk(), list[float]()
    admission = Admission(AdmissionLimits(), disk.clock)
    server = server_of(range(1), range(1, 8), disk, admission=admission)

    async def main() -> None:
        await server.handle(request_of((1,)))  # the first read tells what one takes
        waiting = asyncio.create_task(server.handle(request_of((2, 3, 4, 5))))
        await asyncio.sleep(0)
        seen.append(admission.backlog_s)
        await waiting
        seen.append(admission.backlog_s)
        await server.aclose()

    asyncio.run(main())
    assert seen[0] >= 4 * READ_S
    assert seen[1] == 0
