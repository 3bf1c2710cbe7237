"""The owner's limit on a device's memory: experts stop at it, and a call that finds no room is for another replica."""

from typing import NoReturn

import pytest
import torch

from shoal.experts.backend import ExpertWeights
from shoal.experts.cuda_backend import CudaBackend
from shoal.experts.device_memory import EXPERTS_SHARE
from shoal.experts.family import ExpertSpec
from shoal.experts.weight_formats import expert_shapes, quantize_expert, stored_bytes
from shoal.protocol.errors import Busy, InvalidRequest
from shoal.protocol.messages import Rounding, WeightFormat

SPEC = ExpertSpec(hidden=64, inter=32)
EXPERT_BYTES = stored_bytes(SPEC, WeightFormat.BF16)


class Device:
    """A device whose figures a test sets."""

    def __init__(self, total: int, free: int, used: int = 0) -> None:
        self.total, self.free, self.used = total, free, used
        self.capped_at: int | None = None

    def total_bytes(self) -> int:
        return self.total

    def free_bytes(self) -> int:
        return self.free

    def used_bytes(self) -> int:
        return self.used

    def cap(self, size_bytes: int) -> None:
        self.capped_at = size_bytes


def backend_on(device: Device, limit_bytes: int | None) -> CudaBackend:
    return CudaBackend(torch.device("cpu"), is_interpreted=True, limit_bytes=limit_bytes, memory=device)


def expert() -> ExpertWeights:
    return quantize_expert({name: torch.zeros(shape) for name, shape in expert_shapes(SPEC).items()},
                           WeightFormat.BF16, "a test")  # fmt: skip


def test_torch_itself_is_told_the_limit_and_experts_leave_room_for_calls() -> None:
    device = Device(total=80_000, free=70_000)
    assert backend_on(device, 50_000).free_bytes() == int(50_000 * EXPERTS_SHARE)
    assert device.capped_at == 50_000


def test_without_a_limit_what_is_free_may_be_taken() -> None:
    device = Device(total=80_000, free=70_000)
    assert backend_on(device, None).free_bytes() == 70_000
    assert device.capped_at is None


def test_what_other_programs_took_is_not_to_be_had_within_the_limit_either() -> None:
    assert backend_on(Device(total=80_000, free=10_000), 50_000).free_bytes() == 10_000


def test_experts_are_packed_up_to_the_limit_and_not_beyond() -> None:
    limit_bytes = int(2 * EXPERT_BYTES / EXPERTS_SHARE) + 1
    device = Device(total=10**9, free=10**9)
    backend = backend_on(device, limit_bytes)
    for _ in range(2):
        device.used += backend.pack(SPEC, expert()).resident_bytes
    assert backend.free_bytes() < EXPERT_BYTES
    with pytest.raises(InvalidRequest, match="--vram"):
        backend.pack(SPEC, expert())


def out_of_memory(*_: object, **__: object) -> NoReturn:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_device_that_is_full_all_the_same_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backend_on(Device(total=10**9, free=10**9), None)
    packed = backend.pack(SPEC, expert())
    monkeypatch.setattr(backend, "_copy", out_of_memory)
    with pytest.raises(InvalidRequest, match="no room"):
        backend.pack(SPEC, expert())
    monkeypatch.setattr("shoal.experts.cuda_backend.grouped_swiglu", out_of_memory)
    with pytest.raises(Busy):
        backend.run([packed], torch.zeros(1, 64), torch.tensor([0]), [0, 1], torch.ones(1), Rounding.BF16)
