"""The Triton programs against the reference, on odd shapes, in Triton's interpreter.

The interpreter runs each program's operations one by one in numpy, on the CPU: it tests the logic, bounds and rounding,
not what a compiler makes of them (`test_cuda_device.py`).
"""

import sys
from collections.abc import Iterator

import pytest
import torch

from shoal.experts.cuda_backend import CudaBackend
from shoal.experts.family import ExpertSpec
from shoal.experts.reference_backend import ReferenceBackend
from shoal.experts.weight_formats import quantize_expert, stored_bytes
from shoal.kernels import cuda
from shoal.kernels.activation import GPT_OSS
from shoal.kernels.cuda.tiles import choose_tile_rows, cut_tiles, make_plan, pairs_of_rows
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.messages import Rounding, WeightFormat
from tests.kernels.cuda_calls import SPEC, VARIANTS, compare, pack

CPU = torch.device("cpu")

BOUND = {Rounding.FP32: 2e-6, Rounding.BF16: 5e-4}
"""The interpreter's numpy sums nearly as the reference does: measured 4e-7 and 0. A forgotten rounding makes 3e-3."""


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaBackend]:
    """A back end whose programs are interpreted, in this test only: Triton decides when it decorates a program."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    _forget_programs()
    yield CudaBackend(CPU, is_interpreted=True)
    _forget_programs()


def _forget_programs() -> None:
    sys.modules.pop(cuda.__name__ + ".programs", None)
    vars(cuda).pop("programs", None)


@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("weight_format", WeightFormat)
def test_ragged_groups_and_widths_agree_with_the_reference(
    interpreted: CudaBackend, weight_format: WeightFormat, rounding: Rounding
) -> None:
    compare(interpreted, SPEC, weight_format, rounding, BOUND)


@pytest.mark.parametrize("weight_format", WeightFormat)
@pytest.mark.parametrize("spec", [ExpertSpec(hidden=256, inter=128), ExpertSpec(hidden=30, inter=2)])
def test_whole_and_tiny_widths_agree_with_the_reference(
    interpreted: CudaBackend, weight_format: WeightFormat, spec: ExpertSpec
) -> None:
    compare(interpreted, spec, weight_format, Rounding.BF16, BOUND)


@pytest.mark.parametrize("weight_format", WeightFormat)
def test_every_format_with_biases_and_clamps_agrees_with_the_reference(
    interpreted: CudaBackend, weight_format: WeightFormat
) -> None:
    compare(interpreted, VARIANTS[0], weight_format, Rounding.BF16, BOUND)


@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("spec", VARIANTS, ids=["gpt-oss", "deepseek-v4", "silu with biases"])
def test_every_activation_agrees_with_the_reference(
    interpreted: CudaBackend, spec: ExpertSpec, rounding: Rounding
) -> None:
    compare(interpreted, spec, WeightFormat.BF16, rounding, BOUND)


@pytest.mark.parametrize("weight_format", [WeightFormat.MXFP4, WeightFormat.BF16])
def test_the_width_of_gpt_oss_agrees_with_the_reference(interpreted: CudaBackend, weight_format: WeightFormat) -> None:
    spec = ExpertSpec(hidden=2880, inter=40, activation=GPT_OSS, has_biases=True)
    compare(interpreted, spec, weight_format, Rounding.BF16, BOUND)


def test_nan_passes_the_clamps(interpreted: CudaBackend) -> None:
    (packed,) = pack(interpreted, VARIANTS[0], WeightFormat.BF16, 1)
    x = torch.zeros(2, SPEC.hidden)
    x[0, 3] = torch.nan
    y = interpreted.run([packed], x, torch.arange(2), [0, 2], torch.ones(2), Rounding.BF16)  # type: ignore[list-item]
    assert y[0].isnan().all()
    assert y[1].isfinite().all()


@pytest.mark.parametrize("weight_format", WeightFormat)
def test_the_programs_decode_every_weight_exactly(interpreted: CudaBackend, weight_format: WeightFormat) -> None:
    """Rows of the identity read columns of the down weight, through gates of one and a scaled silu."""
    spec = ExpertSpec(hidden=130, inter=64)
    weights = {
        "gate": torch.zeros(64, 130),
        "up": torch.zeros(64, 130),
        "down": torch.randn(130, 64, generator=torch.Generator().manual_seed(3)),
    }
    weights["gate"][:, :64] = 64 * torch.eye(64)
    weights["up"][:, :64] = torch.eye(64) / 64
    stored = quantize_expert(weights, weight_format, "a test")
    call = (torch.eye(130)[:64], torch.arange(64), [0, 64], torch.ones(64), Rounding.FP32)
    answers = [backend.run([backend.pack(spec, stored)], *call) for backend in (interpreted, ReferenceBackend())]
    assert torch.equal(*answers)


def test_the_order_of_the_sum_is_that_of_the_experts(interpreted: CudaBackend) -> None:
    packed = pack(interpreted, SPEC, WeightFormat.BF16, 3)
    x, weights = torch.randn(1, SPEC.hidden), torch.tensor([1.0, 3e4, 1e-4])
    call = (x, torch.zeros(3, dtype=torch.int64), [0, 1, 2, 3], weights, Rounding.BF16)
    first, second = (interpreted.run(packed, *call) for _ in range(2))  # type: ignore[arg-type]
    assert torch.equal(first, second)
    terms = [
        interpreted.run([packed[i]], x, torch.zeros(1, dtype=torch.int64), [0, 1], weights[i : i + 1], Rounding.BF16)  # type: ignore[list-item]
        for i in range(3)
    ]
    assert torch.equal(first, terms[0] + terms[1] + terms[2])


def test_a_row_that_an_expert_gets_twice_counts_twice(interpreted: CudaBackend) -> None:
    packed = pack(interpreted, SPEC, WeightFormat.F32, 1)
    x = torch.randn(2, SPEC.hidden)
    twice = interpreted.run(packed, x, torch.tensor([1, 1]), [0, 2], torch.ones(2), Rounding.FP32)  # type: ignore[arg-type]
    once = interpreted.run(packed, x, torch.tensor([1]), [0, 1], torch.ones(1), Rounding.FP32)  # type: ignore[arg-type]
    assert torch.equal(twice, 2 * once)


@pytest.mark.parametrize("weight_format", WeightFormat)
def test_memory_is_what_was_said_and_nothing_of_the_stored_tensors_is_kept(weight_format: WeightFormat) -> None:
    backend = CudaBackend(CPU, is_interpreted=True)
    (packed,) = pack(backend, SPEC, weight_format, 1)
    assert packed.resident_bytes == backend.resident_bytes(SPEC, weight_format) == stored_bytes(SPEC, weight_format)  # type: ignore[attr-defined]


def test_nothing_to_do_is_zeros(interpreted: CudaBackend) -> None:
    nothing = (torch.zeros(0, dtype=torch.int64), [0], torch.zeros(0), Rounding.BF16)
    assert torch.equal(interpreted.run([], torch.ones(3, 5), *nothing), torch.zeros(3, 5))
    packed = pack(interpreted, SPEC, WeightFormat.BF16, 2)
    empty = (torch.zeros(0, dtype=torch.int64), [0, 0, 0], torch.zeros(0), Rounding.BF16)
    answer = interpreted.run(packed, torch.ones(3, SPEC.hidden), *empty)  # type: ignore[arg-type]
    assert torch.equal(answer, torch.zeros(3, SPEC.hidden))


def test_it_is_never_chosen_silently() -> None:
    with pytest.raises(InvalidRequest, match="no such device"):
        CudaBackend(CPU)
    if not torch.cuda.is_available():
        with pytest.raises(InvalidRequest, match="no such device"):
            CudaBackend(torch.device("cuda"))


def test_experts_that_do_not_fit_one_launch_are_refused() -> None:
    backend = CudaBackend(CPU, is_interpreted=True)
    mixed = pack(backend, SPEC, WeightFormat.BF16, 1) + pack(backend, SPEC, WeightFormat.F32, 1)
    call = (torch.ones(1, SPEC.hidden), torch.zeros(2, dtype=torch.int64), [0, 1, 2], torch.ones(2), Rounding.BF16)
    with pytest.raises(InvalidRequest, match="2 shapes or formats"):
        backend.run(mixed, *call)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="packed by another back end"):
        backend.run(pack(ReferenceBackend(), SPEC, WeightFormat.BF16, 2), *call)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="width 5, the expert 136"):
        backend.run(mixed[:1] * 2, torch.ones(1, 5), *call[1:])  # type: ignore[arg-type]


def test_tiles_cover_every_pair_once_and_never_two_experts() -> None:
    seen = []
    for expert, begin, end in zip(*(part.tolist() for part in cut_tiles([0, 0, 1, 4, 21, 278], 16)), strict=True):
        assert 1 <= end - begin <= 16
        seen += [(expert, pair) for pair in range(begin, end)]
    expected = [
        (expert, pair)
        for expert, (b, e) in enumerate([(0, 0), (0, 1), (1, 4), (4, 21), (21, 278)])
        for pair in range(b, e)
    ]
    assert seen == expected
    assert len(cut_tiles([0, 0], 16)[0]) == 0


def test_rows_find_their_pairs_in_expert_order() -> None:
    first, pair = pairs_of_rows(torch.tensor([2, 0, 2, 0, 2]), 4)
    assert first.tolist() == [0, 2, 2, 5, 5]
    assert pair.tolist() == [1, 3, 0, 2, 4]


def test_the_parts_of_a_plan_are_what_they_should_be_and_aligned() -> None:
    row_idx = torch.tensor([2, 0, 2, 0, 2])
    plan = make_plan(row_idx, [0, 1, 5], 4, 2, CPU)
    assert plan.row_idx.tolist() == row_idx.tolist()
    assert (plan.tile_expert.tolist(), plan.tile_begin.tolist()) == ([0, 1, 1], [0, 1, 3])
    assert (plan.tile_end.tolist(), plan.num_tiles) == ([1, 3, 5], 3)
    assert (plan.first_pair.tolist(), plan.pair_of_row.tolist()) == ([0, 2, 2, 5, 5], [1, 3, 0, 2, 4])
    parts = (plan.row_idx, plan.tile_expert, plan.tile_begin, plan.tile_end, plan.first_pair, plan.pair_of_row)
    assert all(part.storage_offset() % 4 == 0 for part in parts)


@pytest.mark.parametrize(("offsets", "rows"), [([0], 16), ([0, 1], 16), ([0, 17, 18], 32), ([0, 257], 64)])
def test_a_tile_is_as_tall_as_the_largest_group_needs(offsets: list[int], rows: int) -> None:
    assert choose_tile_rows(offsets) == rows
