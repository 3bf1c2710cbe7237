"""Experts come from disk, the latest stay in memory, and a call gives the same sums wherever its experts are."""

import random
import threading

import pytest
import torch

from shoal.experts.backend import PackedExpert
from shoal.experts.choose_backend import KernelChoice, choose_backend
from shoal.node.serving.cold import ColdExperts, LatestExperts, compute
from shoal.protocol.errors import CheckpointError, NotHeld, PeerFailed, ShoalError
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import Rounding, WeightFormat
from tests.node.serving.test_batcher import NUM_EXPERTS, a_call, packed_experts

LAYER = LayerId(3)
ALL = {LAYER: tuple(map(ExpertId, range(NUM_EXPERTS)))}
BACKEND = choose_backend(KernelChoice.REFERENCE, 1)


class Disk:
    """Packed experts, and which were read. Each read takes a second of its clock."""

    def __init__(self, error: Exception | None = None) -> None:
        self.read: list[int] = []
        self.error = error
        self.packed = packed_experts(BACKEND, WeightFormat.BF16)

    def load(self, layer: LayerId, expert: ExpertId) -> PackedExpert:
        self.read.append(expert)
        if self.error is not None:
            raise self.error
        return self.packed[expert]

    def clock(self) -> float:
        return float(len(self.read))

    def latest(self, capacity: int) -> LatestExperts:
        return LatestExperts(self.load, capacity, self.clock)


def test_the_expert_that_was_not_asked_for_the_longest_goes_first() -> None:
    disk = Disk()
    latest = disk.latest(2)
    for expert in (0, 1, 0, 2, 0, 1):
        assert latest.get(LAYER, ExpertId(expert)) is disk.packed[expert]
    assert disk.read == [0, 1, 2, 1]
    assert len(latest) == 2
    assert (LAYER, ExpertId(0)) in latest
    assert (LAYER, ExpertId(2)) not in latest


@pytest.mark.parametrize("capacity", [1, 2, 3, NUM_EXPERTS])
@pytest.mark.parametrize("num_resident", [0, 1, 4, NUM_EXPERTS])
def test_a_call_gives_the_same_sums_however_few_experts_fit_and_wherever_they_are(
    capacity: int, num_resident: int
) -> None:
    rng, disk = random.Random(capacity), Disk()
    for _ in range(8):
        call = a_call(rng, rng.randint(1, 5))
        rows, latest = call.rows, disk.latest(capacity)
        resident = {ExpertId(e): disk.packed[e] for e in rng.sample(range(NUM_EXPERTS), num_resident)}
        experts = [disk.packed[expert] for expert in call.experts]
        whole = BACKEND.run(experts, rows.x, rows.row_idx, rows.offsets, rows.topk_weights, Rounding.FP32)
        disk.read.clear()
        answer = compute(BACKEND, resident, ColdExperts(ALL, latest), call)
        torch.testing.assert_close(answer, whole, rtol=1e-5, atol=1e-4)
        assert disk.read == [expert for expert in call.experts if expert not in resident]
        assert len(latest) == min(capacity, len(disk.read))


def test_what_is_neither_in_memory_nor_on_disk_any_more_is_not_held() -> None:
    cold = ColdExperts({LAYER: (ExpertId(1),)}, Disk().latest(2))
    with pytest.raises(NotHeld, match="expert 2 of layer 3"):
        compute(BACKEND, {}, cold, a_call(random.Random(1), experts=(1, 2)))


@pytest.mark.parametrize(
    "error", [OSError("no such device"), CheckpointError("a.safetensors", "w", "damaged")], ids=repr
)
def test_a_weight_that_can_not_be_read_is_the_nodes_failure_and_tells_no_path(error: Exception) -> None:
    latest = Disk(error).latest(2)
    with pytest.raises(PeerFailed, match="expert 1 of layer 3 can not be read from disk") as told:
        latest.get(LAYER, ExpertId(1))
    assert isinstance(told.value, ShoalError)
    assert told.value.retry_elsewhere
    assert len(latest) == 0


def test_one_expert_is_read_for_the_check_before_anything_is_announced_and_tells_what_reading_takes() -> None:
    disk = Disk()
    cold = ColdExperts({LayerId(2): (), LAYER: (ExpertId(4), ExpertId(5))}, disk.latest(2))
    assert cold.read_ms == 0
    assert cold.sample() == {LAYER: {4: disk.packed[4]}}
    assert disk.read == [4]
    assert cold.read_ms == 1000


def test_a_disk_that_takes_no_time_is_said_to_take_a_millisecond_for_0_says_nothing() -> None:
    cold = ColdExperts(ALL, LatestExperts(Disk().load, 1, iter((0.0, 1e-6)).__next__))
    cold.sample()
    assert cold.read_ms == 1


def test_a_disk_with_nothing_on_it_yet_has_no_sample() -> None:
    assert ColdExperts({}, Disk().latest(1)).sample() == {}


def test_an_expert_is_in_memory_or_on_disk_and_never_in_neither_or_both() -> None:
    cold = ColdExperts({LAYER: (ExpertId(1), ExpertId(2))}, Disk().latest(1))
    for resident in ({}, {LAYER: (1,)}, {LAYER: (1, 2)}, {LAYER: (0, 1)}, {LayerId(4): (2,)}):
        beside = cold.beside({layer: tuple(map(ExpertId, experts)) for layer, experts in resident.items()})
        assert set(beside.get(LAYER, ())) == {1, 2} - set(resident.get(LAYER, ()))


def test_what_comes_to_the_disk_is_offered_from_then_on() -> None:
    cold = ColdExperts({}, Disk().latest(1))
    assert not cold.has(LAYER, ExpertId(7))
    cold.offer(LAYER, ExpertId(7))
    assert cold.has(LAYER, ExpertId(7))
    assert cold.beside({}) == {LAYER: (7,)}


def test_a_request_reads_no_more_ahead_than_fits() -> None:
    disk = Disk()
    ColdExperts(ALL, disk.latest(2)).read(LAYER, ALL[LAYER])
    assert disk.read == [0, 1]


def test_two_threads_that_read_the_same_few_experts_get_them_and_keep_no_more_than_fit() -> None:
    disk = Disk()
    latest = disk.latest(2)
    wrong: list[int] = []

    def read(seed: int) -> None:
        rng = random.Random(seed)
        for expert in (rng.randrange(NUM_EXPERTS) for _ in range(300)):
            if latest.get(LAYER, ExpertId(expert)) is not disk.packed[expert]:
                wrong.append(expert)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(latest) <= 2
