"""An anchor's experts come from disk, the latest stay in memory, and a call gives the same sums whatever fits."""

import random

import pytest
import torch

from shoal.experts.backend import PackedExpert
from shoal.experts.choose_backend import KernelChoice, choose_backend
from shoal.node.serving.anchor import Anchor, LatestExperts, compute_in_parts
from shoal.protocol.errors import CheckpointError, PeerFailed, ShoalError
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import Rounding, WeightFormat
from tests.node.serving.test_batcher import NUM_EXPERTS, a_call, packed_experts

LAYER = LayerId(3)
BACKEND = choose_backend(KernelChoice.REFERENCE, 1)


class Disk:
    """Packed experts, and which were read."""

    def __init__(self, error: Exception | None = None) -> None:
        self.read: list[int] = []
        self.error = error
        self.packed = packed_experts(BACKEND, WeightFormat.BF16)

    def load(self, layer: LayerId, expert: ExpertId) -> PackedExpert:
        self.read.append(expert)
        if self.error is not None:
            raise self.error
        return self.packed[expert]


def test_the_expert_that_was_not_asked_for_the_longest_goes_first() -> None:
    disk = Disk()
    latest = LatestExperts(disk.load, 2)
    for expert in (0, 1, 0, 2, 0, 1):
        assert latest.get(LAYER, ExpertId(expert)) is disk.packed[expert]
    assert disk.read == [0, 1, 2, 1]
    assert len(latest) == 2


@pytest.mark.parametrize("capacity", [1, 2, 3, NUM_EXPERTS])
def test_a_call_gives_the_same_sums_however_few_experts_fit(capacity: int) -> None:
    rng, disk = random.Random(capacity), Disk()
    for _ in range(8):
        call = a_call(rng, rng.randint(1, 5))
        rows, latest = call.rows, LatestExperts(disk.load, capacity)
        experts = [disk.packed[expert] for expert in call.experts]
        whole = BACKEND.run(experts, rows.x, rows.row_idx, rows.offsets, rows.topk_weights, Rounding.FP32)
        torch.testing.assert_close(compute_in_parts(BACKEND, latest, call), whole, rtol=1e-5, atol=1e-4)
        assert len(latest) == min(capacity, len(call.experts))


@pytest.mark.parametrize(
    "error", [OSError("no such device"), CheckpointError("a.safetensors", "w", "damaged")], ids=repr
)
def test_a_weight_that_can_not_be_read_is_the_nodes_failure_and_tells_no_path(error: Exception) -> None:
    latest = LatestExperts(Disk(error).load, 2)
    with pytest.raises(PeerFailed, match="expert 1 of layer 3 can not be read from disk") as told:
        latest.get(LAYER, ExpertId(1))
    assert isinstance(told.value, ShoalError)
    assert told.value.retry_elsewhere
    assert len(latest) == 0


def test_one_expert_is_read_for_the_check_before_anything_is_announced() -> None:
    disk = Disk()
    anchor = Anchor({LayerId(2): (), LAYER: (ExpertId(4), ExpertId(5))}, LatestExperts(disk.load, 2))
    assert anchor.sample() == {LAYER: {4: disk.packed[4]}}
    assert disk.read == [4]
