"""The AMX path: sums bit for bit in the order of Intel's manual, on real tiles if there are any, else on software's."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shoal.kernels import cpu
from shoal.kernels.cpu import CpuKernels, Format, Isa, PackedMatrix
from shoal.kernels.formats import dequantize_fp8_block
from shoal.kernels.int_groups import dequantize_int4, dequantize_int8
from tests.kernels.cpu_cases import INT4_GROUP, Stored, case, distance, exact, expert, pack, store

if not cpu.is_available():
    pytest.skip("needs the C++ kernels, which were not built", allow_module_level=True)

needs_amx = pytest.mark.skipif(Isa.AMX not in cpu.available_isas(), reason="needs AMX")
TILES = [pytest.param(Isa.AMX, marks=needs_amx), Isa.AMX_EMULATED]
FORMATS = [each for each in Format if each is not Format.F32]
SCALED_BY_GROUP = (Format.FP8_BLOCK, Format.INT8_G128, Format.INT4_G128)

PRODUCT_COLUMNS = 32
"""One tdpbf16ps."""


def with_powers_of_two(stored: Stored, weight_format: Format) -> Stored:
    """Other scales: those whose products are exact, so that a sum may be scaled before or after."""
    if stored.scale is None or weight_format is Format.MXFP4:
        return stored
    generator = torch.Generator().manual_seed(7)
    scale = (2.0 ** torch.randint(-3, 4, stored.scale.shape, generator=generator)).to(stored.scale.dtype)
    if weight_format is Format.FP8_BLOCK:
        values = dequantize_fp8_block(stored.data, scale)
    elif weight_format is Format.INT8_G128:
        values = dequantize_int8(stored.data, scale)
    else:
        values = dequantize_int4(stored.data, scale, INT4_GROUP[weight_format])
    return Stored(stored.data, scale, values)


def product(x: NDArray[np.float32], w: NDArray[np.float32]) -> NDArray[np.float32]:
    """x[T, 32] w[N, 32]^T as one tile instruction adds it up: even and odd columns in chains of their own."""
    even = np.zeros((len(x), len(w)), np.float32)
    odd = even.copy()
    for k in range(0, PRODUCT_COLUMNS, 2):  # bf16 times bf16 is exact in fp32, so this rounds as a fused operation does
        even += x[:, k, None] * w[None, :, k]
        odd += x[:, k + 1, None] * w[None, :, k + 1]
    return even + odd


def in_the_order_of_the_manual(x: torch.Tensor, values: torch.Tensor, group: int) -> torch.Tensor:
    """x values^T, products added one after the other within groups of `group` columns, then group by group."""
    columns = -values.shape[1] % group
    rows, weights = (torch.nn.functional.pad(each, (0, columns)).numpy() for each in (x, values))
    total = np.zeros((len(rows), len(weights)), np.float32)
    for begin in range(0, rows.shape[1], group):
        part = np.zeros_like(total)
        for k in range(begin, begin + group, PRODUCT_COLUMNS):
            part += product(rows[:, k : k + PRODUCT_COLUMNS], weights[:, k : k + PRODUCT_COLUMNS])
        total += part
    return torch.from_numpy(total)


@pytest.mark.parametrize("isa", TILES)
@pytest.mark.parametrize("weight_format", FORMATS)
def test_sums_are_those_of_the_manual_bit_for_bit(weight_format: Format, isa: Isa) -> None:
    generator = torch.Generator().manual_seed(6)
    stored = with_powers_of_two(store(torch.randn(130, 602, generator=generator), weight_format), weight_format)
    group = 128 if weight_format in SCALED_BY_GROUP else 640
    for num_rows in (1, 3, 16, 17, 33, 50):
        x = torch.randn(num_rows, 602, generator=generator).bfloat16()
        answer = CpuKernels(1, isa).linear(pack(stored, weight_format), x, is_rounded=True)
        assert torch.equal(answer, in_the_order_of_the_manual(x.float(), stored.values, group))


@pytest.mark.parametrize("isa", TILES)
@pytest.mark.parametrize("weight_format", [Format.FP8_BLOCK, Format.BF16, Format.INT4_G32])  # the three ways to scale
def test_rows_beyond_a_block_and_panels_taken_together_change_no_bit(weight_format: Format, isa: Isa) -> None:
    packed, _ = expert(weight_format, 1090, 550, torch.Generator().manual_seed(8))  # 18 panels down: 4 at once
    x, one = torch.randn(530, 1090, generator=torch.Generator().manual_seed(9)), torch.ones(530)

    def run(threads: int, rows: torch.Tensor) -> torch.Tensor:
        kernels, count = CpuKernels(threads, isa), len(rows)
        return kernels.grouped_swiglu([packed], x[rows], torch.arange(count), (0, count), one[:count], is_rounded=True)

    whole = run(1, torch.arange(530))
    assert torch.equal(run(5, torch.arange(530)), whole)
    for rows in (torch.tensor([529]), torch.tensor([0, 511, 512]), torch.arange(16), torch.arange(500, 530)):
        assert torch.equal(run(1, rows), whole[rows])


@pytest.mark.parametrize("isa", TILES)
def test_experts_of_other_widths_and_rows_that_repeat_share_a_call(isa: Isa) -> None:
    narrow, wide = case(Format.BF16, 200, 64, [17]), case(Format.BF16, 200, 530, [40])
    of = wide._replace(
        packed=[*narrow.packed, *wide.packed], plain=[*narrow.plain, *wide.plain],
        row_idx=torch.cat([narrow.row_idx, wide.row_idx]), offsets=[0, 17, 57], topk_weights=torch.rand(57),
    )  # fmt: skip
    answer = CpuKernels(2, isa).grouped_swiglu(
        of.packed, of.x, of.row_idx, of.offsets, of.topk_weights, is_rounded=True
    )
    assert distance(answer, exact(of)) <= 5e-3


@pytest.mark.parametrize("isa", TILES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_spoils_no_other_row_of_its_tile(value: float, isa: Isa) -> None:
    of = case(Format.FP8_BLOCK, 200, 136, [20])
    row, kernels = int(of.row_idx[5]), CpuKernels(1, isa)

    def run(x: torch.Tensor) -> torch.Tensor:
        return kernels.grouped_swiglu(of.packed, x, of.row_idx, of.offsets, of.topk_weights, is_rounded=True)

    spoiled = of.x.clone()
    spoiled[row, 3] = value
    others = torch.arange(len(of.x)) != row
    assert torch.equal(run(spoiled)[others], run(of.x)[others])
    assert run(spoiled)[row].isnan().any()


def test_software_tiles_are_never_chosen_unless_they_are_named() -> None:
    assert Isa.AMX_EMULATED not in cpu.available_isas()
    assert CpuKernels(1).isa is cpu.available_isas()[-1]
    assert CpuKernels(1, Isa.AMX_EMULATED).isa is Isa.AMX_EMULATED


@needs_amx
def test_real_tiles_give_what_software_tiles_give() -> None:
    for weight_format in FORMATS:
        matrix, x = pack(store(torch.randn(322, 200), weight_format), weight_format), torch.randn(40, 200)
        answers = [CpuKernels(2, isa).linear(matrix, x, is_rounded=True) for isa in (Isa.AMX, Isa.AMX_EMULATED)]
        assert torch.equal(*answers) if weight_format not in SCALED_BY_GROUP else distance(*answers) <= 1e-6


def test_a_path_that_the_processor_or_its_system_lacks_is_refused_by_name() -> None:
    for isa in set(Isa) - set(cpu.available_isas()) - {Isa.AMX_EMULATED}:
        with pytest.raises(ValueError, match=f"no path '{isa}'"):
            CpuKernels(1, isa)


@pytest.mark.parametrize("weight_format", [Format.INT4_G32, Format.INT4_G128])
def test_int4_scales_whose_products_are_no_bf16_numbers_are_refused(weight_format: Format) -> None:
    stored = store(torch.randn(64, 128), weight_format)
    assert stored.scale is not None
    scale = torch.full_like(stored.scale, 1 + 2.0**-5)
    with pytest.raises(ValueError, match="significant bits"):
        PackedMatrix(weight_format, 64, 128, stored.data, scale)
