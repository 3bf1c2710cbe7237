"""The C++ kernels: every path that this processor has, every format, both roundings, odd shapes and bad input."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shoal.kernels import cpu
from shoal.kernels.cpu import CpuKernels, Format, Isa, PackedMatrix, PackedSwiGLU
from shoal.kernels.reference import grouped_swiglu
from shoal.protocol.messages import WeightFormat
from tests.kernels.cpu_cases import Case, case, distance, exact, expert, pack, store

if not cpu.is_available():
    pytest.skip("needs the C++ kernels, which were not built", allow_module_level=True)

ISAS = (*cpu.available_isas(), Isa.AMX_EMULATED)
"""Every path that can run here, and the loops of AMX on tiles of plain C++."""
GROUP_SIZES = [0, 1, 3, 17, 257]
FOUR_BIT = (Format.INT4_G32, Format.INT4_G128, Format.MXFP4)
SHAPES = [(200, 136), (128, 64), (72, 322)]
"""(hidden, inter): multiples of nothing, of everything, and of two only (4-bit formats need an even width)."""

BOUND = {False: 1e-6, True: 5e-3}
"""Relative L2 against fp64 on the dequantized weights, in rounding 0 and 1; and between paths."""


def run(kernels: CpuKernels, of: Case, *, is_rounded: bool) -> torch.Tensor:
    return kernels.grouped_swiglu(of.packed, of.x, of.row_idx, of.offsets, of.topk_weights, is_rounded=is_rounded)


@pytest.mark.parametrize("is_rounded", [False, True])
@pytest.mark.parametrize(("hidden", "inter"), SHAPES)
@pytest.mark.parametrize("weight_format", Format)
def test_every_path_is_near_the_exact_answer_and_near_the_others(
    weight_format: Format, hidden: int, inter: int, is_rounded: bool
) -> None:
    of = case(weight_format, hidden, inter, GROUP_SIZES)
    truth = exact(of)
    answers = [run(CpuKernels(2, isa), of, is_rounded=is_rounded) for isa in ISAS]
    for answer in answers:
        assert distance(answer, truth) <= BOUND[is_rounded]
        assert distance(answer, answers[0]) <= BOUND[is_rounded]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("weight_format", Format)
def test_rounding_0_is_the_reference_to_1e_6_and_rounding_1_to_a_tenth_of_its_own_error(
    weight_format: Format, isa: Isa
) -> None:
    of = case(weight_format, 256, 128, GROUP_SIZES)
    for is_rounded, bound in ((False, 1e-6), (True, 5e-4)):
        theirs = grouped_swiglu(of.plain, of.x, of.row_idx, of.offsets, of.topk_weights, is_rounded=is_rounded)
        assert distance(run(CpuKernels(1, isa), of, is_rounded=is_rounded), theirs) <= bound


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("weight_format", Format)
def test_an_answer_depends_neither_on_the_other_rows_nor_on_the_number_of_threads(
    weight_format: Format, isa: Isa
) -> None:
    packed, _ = expert(weight_format, 160, 72, torch.Generator().manual_seed(2))
    x, one = torch.randn(40, 160, generator=torch.Generator().manual_seed(3)), torch.ones(40)
    for is_rounded in (False, True):
        whole = CpuKernels(3, isa).grouped_swiglu([packed], x, torch.arange(40), (0, 40), one, is_rounded=is_rounded)
        alone = CpuKernels(1, isa)
        for count in (1, 2, 3, 4, 5, 8, 9, 13):
            part = alone.grouped_swiglu(
                [packed], x[:count], torch.arange(count), (0, count), one[:count], is_rounded=is_rounded
            )
            assert torch.equal(part, whole[:count])


@pytest.mark.parametrize("isa", ISAS)
def test_every_fp8_code_is_decoded_exactly_subnormals_too(isa: Isa) -> None:
    codes = torch.tensor([code for code in range(256) if code & 0x7F != 0x7F], dtype=torch.uint8)
    data = codes.view(torch.float8_e4m3fn).repeat(2, 1)
    matrix = PackedMatrix(Format.FP8_BLOCK, 2, 254, data, torch.full((1, 2), 0.5))
    for is_rounded in (False, True):
        picked = CpuKernels(1, isa).linear(matrix, torch.eye(254), is_rounded=is_rounded)
        assert torch.equal(picked.T, data.float() * 0.5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("weight_format", Format)
def test_a_plain_linear_picks_each_weight_exactly(weight_format: Format, isa: Isa) -> None:
    stored = store(torch.randn(70, 134, generator=torch.Generator().manual_seed(4)), weight_format)
    picked = CpuKernels(2, isa).linear(pack(stored, weight_format), torch.eye(134), is_rounded=False)
    assert torch.equal(picked.T, stored.values)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("weight_format", Format)
def test_a_stack_of_maps_in_one_call_gives_what_each_gives_alone(weight_format: Format, isa: Isa) -> None:
    generator = torch.Generator().manual_seed(5)
    parts = [store(torch.randn(128, 70, generator=generator), weight_format) for _ in range(3)]
    scales = [part.scale for part in parts if part.scale is not None]
    stack = PackedMatrix(
        weight_format, 384, 70, torch.cat([part.data for part in parts]), torch.cat(scales) if scales else None
    )
    kernels = CpuKernels(2, isa)
    for num_rows, is_rounded in ((0, True), (1, True), (5, False), (9, True), (513, False)):
        x = torch.randn(3, num_rows, 70, generator=generator)
        together = kernels.grouped_linear(stack, x, is_rounded=is_rounded)
        for i, part in enumerate(parts):
            alone = kernels.linear(pack(part, weight_format), x[i], is_rounded=is_rounded)
            assert torch.equal(together[i], alone)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("weight_format", Format)
def test_a_result_in_bf16_is_the_one_in_fp32_rounded(weight_format: Format, isa: Isa) -> None:
    generator = torch.Generator().manual_seed(6)
    matrix = pack(store(torch.randn(130, 70, generator=generator), weight_format), weight_format)
    kernels = CpuKernels(2, isa)
    for num_rows, is_rounded in ((0, True), (1, True), (5, False), (21, True), (513, True)):
        x = torch.randn(num_rows, 70, generator=generator)
        result = kernels.linear(matrix, x, is_rounded=is_rounded, dtype=torch.bfloat16)
        assert torch.equal(result, kernels.linear(matrix, x, is_rounded=is_rounded).bfloat16())


def test_a_result_in_another_dtype_is_refused() -> None:
    matrix = PackedMatrix(Format.F32, 64, 8, torch.ones(64, 8), None)
    for dtype in (torch.float16, torch.int32, torch.float64, torch.uint8):
        with pytest.raises(ValueError, match=r"float32|kernels read"):
            CpuKernels(1).linear(matrix, torch.ones(4, 8), is_rounded=False, dtype=dtype)


def test_a_stack_that_its_groups_do_not_divide_is_refused() -> None:
    kernels, matrix = CpuKernels(1), PackedMatrix(Format.F32, 192, 8, torch.ones(192, 8), None)
    for groups, columns in ((2, 8), (5, 8), (6, 8), (0, 8), (3, 9)):
        with pytest.raises(ValueError, match=r"groups|width"):
            kernels.grouped_linear(matrix, torch.ones(groups, 4, columns), is_rounded=False)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(list(Format)), st.sampled_from(ISAS), st.integers(1, 300), st.integers(1, 200),
    st.lists(st.integers(0, 20), max_size=4), st.booleans(), st.integers(1, 3), st.integers(0, 2**31),
)  # fmt: skip
def test_any_shape_gives_the_answer(
    weight_format: Format, isa: Isa, hidden: int, inter: int, group_sizes: list[int], is_rounded: bool, threads: int,
    seed: int,
) -> None:  # fmt: skip
    if weight_format in FOUR_BIT:  # two columns a byte
        hidden, inter = hidden + hidden % 2, inter + inter % 2
    # rounding 1 is relative to the terms of a sum, and a few terms may cancel
    assume(not is_rounded or min(hidden, inter) >= 32)
    of = case(weight_format, hidden, inter, group_sizes, seed)
    answer, truth = run(CpuKernels(threads, isa), of, is_rounded=is_rounded), exact(of)
    bound = (1e-5 if not is_rounded else 2e-2) * float(truth.norm()) + 1e-5
    assert float((answer.double() - truth).norm()) <= bound


def test_bf16_rows_and_more_threads_than_cores_and_no_rows_at_all() -> None:
    of = case(Format.FP8_BLOCK, 200, 136, [5, 2])
    kernels = CpuKernels(64)
    assert torch.equal(run(kernels, of._replace(x=of.x.bfloat16()), is_rounded=True), run(kernels, of, is_rounded=True))
    nothing = of._replace(x=of.x[:0], row_idx=of.row_idx[:0], offsets=[0, 0, 0], topk_weights=of.topk_weights[:0])
    assert run(kernels, nothing, is_rounded=True).shape == (0, 200)
    assert not kernels.grouped_swiglu([], of.x, of.row_idx[:0], [0], of.topk_weights[:0], is_rounded=True).any()


def test_memory_that_is_misaligned_or_read_only_is_read_all_the_same(tmp_path: Path) -> None:
    weight = torch.randn(64, 128)
    expected = CpuKernels(1).linear(PackedMatrix(Format.F32, 64, 128, weight, None), weight, is_rounded=False)
    raw = bytearray(weight.nbytes + 1)
    raw[1:] = weight.numpy().tobytes()
    misaligned = torch.from_numpy(np.frombuffer(raw, dtype=np.float32, offset=1, count=weight.numel()).reshape(64, 128))
    assert misaligned.data_ptr() % 4
    matrix = PackedMatrix(Format.F32, 64, 128, misaligned, None)
    assert torch.equal(CpuKernels(1).linear(matrix, misaligned, is_rounded=False), expected)
    (tmp_path / "weight").write_bytes(weight.numpy().tobytes())
    mapped = np.memmap(tmp_path / "weight", dtype=np.float32, mode="r", shape=(64, 128))
    native = cpu._module().pack(int(Format.F32), 64, 128, mapped, None)
    assert native.size_bytes == 64 * 128 * 4


def test_packed_weights_take_what_was_said_and_keep_nothing_of_their_source() -> None:
    for weight_format in Format:
        stored = store(torch.randn(65, 130), weight_format)
        matrix = pack(stored, weight_format)
        assert matrix.size_bytes == cpu.packed_bytes(weight_format, 65, 130)
        before = CpuKernels(1).linear(matrix, torch.eye(130), is_rounded=False)
        stored.data.view(torch.uint8).zero_()
        assert torch.equal(CpuKernels(1).linear(matrix, torch.eye(130), is_rounded=False), before)
    assert cpu.packed_bytes(Format.FP8_BLOCK, 2048, 7168) == 2048 * 7168 + 16 * 56 * 4


def test_formats_have_the_numbers_of_the_wire() -> None:
    assert {each.name: each.value for each in Format} == {each.name: each.value for each in WeightFormat}


GOOD = case(Format.FP8_BLOCK, 200, 136, [3, 2])

BAD_CALLS: dict[str, Callable[[Case], Case]] = {
    "x is too narrow": lambda of: of._replace(x=of.x[:, :100].contiguous()),
    "x is not contiguous": lambda of: of._replace(x=torch.cat([of.x, of.x], 1)[:, ::2]),
    "x is transposed": lambda of: of._replace(x=torch.randn(200, 200).T),
    "x is fp64": lambda of: of._replace(x=of.x.double()),
    "x is fp16": lambda of: of._replace(x=of.x.half()),
    "x is int32": lambda of: of._replace(x=of.x.int()),
    "x is a list": lambda of: of._replace(x=of.x[0]),
    "a row too far": lambda of: of._replace(row_idx=of.row_idx + 2),
    "a row far below": lambda of: of._replace(row_idx=of.row_idx - 2**62),
    "rows of int32": lambda of: of._replace(row_idx=of.row_idx.int()),
    "rows with gaps": lambda of: of._replace(row_idx=torch.zeros(10, dtype=torch.int64)[::2]),
    "offsets that descend": lambda of: of._replace(offsets=[0, 6, 5]),
    "offsets below zero": lambda of: of._replace(offsets=[-1, 3, 5]),
    "offsets too far": lambda of: of._replace(offsets=[0, 3, 6]),
    "offsets too few": lambda of: of._replace(offsets=[0, 5]),
    "no offsets": lambda of: of._replace(offsets=[]),
    "weights too few": lambda of: of._replace(topk_weights=of.topk_weights[:4]),
    "weights of fp64": lambda of: of._replace(topk_weights=of.topk_weights.double()),
    "experts of two formats": lambda of: of._replace(packed=[of.packed[0], case(Format.BF16, 200, 136, [1]).packed[0]]),
    "experts of another width": lambda of: of._replace(packed=case(Format.FP8_BLOCK, 72, 136, [1, 1]).packed),
}


@pytest.mark.parametrize("what", BAD_CALLS)
def test_arguments_that_contradict_each_other_are_refused(what: str) -> None:
    kernels = CpuKernels(2)
    with pytest.raises((ValueError, TypeError)):
        run(kernels, BAD_CALLS[what](GOOD), is_rounded=True)
    assert run(kernels, GOOD, is_rounded=True).isfinite().all()


def _fp8(code: int) -> torch.Tensor:
    data = torch.zeros(130, 130, dtype=torch.uint8)
    data[129, 129] = code
    return data.view(torch.float8_e4m3fn)


ONES = torch.ones(2, 2)
BAD_WEIGHTS: dict[str, tuple[Format, torch.Tensor, torch.Tensor | None]] = {
    "fp8 NaN": (Format.FP8_BLOCK, _fp8(0x7F), ONES),
    "fp8 -NaN": (Format.FP8_BLOCK, _fp8(0xFF), ONES),
    "scale NaN": (Format.FP8_BLOCK, _fp8(0), ONES * torch.nan),
    "scale infinite": (Format.FP8_BLOCK, _fp8(1), ONES * torch.inf),
    "product infinite": (Format.FP8_BLOCK, _fp8(0x7E), ONES * 3e38),
    "no scale": (Format.FP8_BLOCK, _fp8(0), None),
    "scale of another shape": (Format.FP8_BLOCK, _fp8(0), torch.ones(2, 1)),
    "scale of another dtype": (Format.FP8_BLOCK, _fp8(0), ONES.double()),
    "another dtype": (Format.FP8_BLOCK, torch.zeros(130, 130), ONES),
    "another shape": (Format.FP8_BLOCK, _fp8(0)[:129], ONES),
    "strided": (Format.BF16, torch.zeros(130, 260, dtype=torch.bfloat16)[:, ::2], None),
    "scale where none belongs": (Format.BF16, torch.zeros(130, 130, dtype=torch.bfloat16), ONES),
    "bf16 NaN": (Format.BF16, torch.full((130, 130), torch.nan).bfloat16(), None),
    "bf16 infinite": (Format.BF16, torch.full((130, 130), -torch.inf).bfloat16(), None),
    "f32 infinite": (Format.F32, torch.full((130, 130), torch.inf), None),
    "int8 -128": (Format.INT8_G128, torch.full((130, 130), -128, dtype=torch.int8), torch.ones(130, 2).bfloat16()),
    "E8M0 NaN": (Format.MXFP4, torch.zeros(130, 65, dtype=torch.uint8), torch.full((130, 5), 255, dtype=torch.uint8)),
    "nibbles of another width": (Format.INT4_G128, _fp8(0).view(torch.uint8), torch.ones(130, 2).bfloat16()),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_WEIGHTS)
def test_weights_that_do_not_fit_are_refused(what: str) -> None:
    weight_format, data, scale = BAD_WEIGHTS[what]
    with pytest.raises(ValueError, match=r"\w"):
        PackedMatrix(weight_format, 130, 130, data, scale)


@pytest.mark.parametrize(("rows", "columns"), [(0, 1), (1, 0), (-1, 128), (2**21, 1), (2**62, 2**62)])
def test_sizes_out_of_range_are_refused(rows: int, columns: int) -> None:
    with pytest.raises(ValueError, match="a matrix of"):
        cpu.packed_bytes(Format.BF16, rows, columns)
    with pytest.raises(ValueError, match="a matrix of"):
        PackedMatrix(Format.F32, rows, columns, torch.zeros(1, 1), None)


def test_matrices_that_make_no_expert_are_refused_when_they_are_used() -> None:
    wide = pack(store(torch.randn(136, 200), Format.F32), Format.F32)
    with pytest.raises(ValueError, match=r"down \[hidden, inter\]"):
        run(CpuKernels(1), GOOD._replace(packed=[PackedSwiGLU(wide, wide, wide)] * 2), is_rounded=True)


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_numbers_of_threads_out_of_range_are_refused(threads: int) -> None:
    with pytest.raises(ValueError, match="threads"):
        CpuKernels(threads)


def test_a_path_that_the_processor_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="no path"):
        cpu._module().runner("sse9", 1)
