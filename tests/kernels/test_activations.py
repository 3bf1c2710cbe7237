"""Every family's activation in the C++ kernels: clamps, alpha, offset and biases, on every path, against reference."""

import math
from dataclasses import replace

import pytest
import torch

from shoal.kernels import cpu
from shoal.kernels.activation import DEEPSEEK_V4, GPT_OSS, SILU, Activation
from shoal.kernels.cpu import CpuKernels, Format, Isa, PackedMatrix, PackedSwiGLU
from shoal.kernels.reference import Biases, activate, grouped_swiglu
from tests.kernels.cpu_cases import Between, Case, case, distance, exact, expert

needs_kernels = pytest.mark.skipif(not cpu.is_available(), reason="needs the C++ kernels, which were not built")
ISAS = (*cpu.available_isas(), Isa.AMX_EMULATED) if cpu.is_available() else ()

GROUP_SIZES = [0, 1, 3, 17, 70]
GPT_OSS_EXPERT = Between(GPT_OSS, has_biases=True)
VARIANTS = [GPT_OSS_EXPERT, Between(DEEPSEEK_V4), Between(SILU, has_biases=True)]
LOUD = 8.0
"""Rows are this many times as large as usual: gates of a standard deviation of 8 meet clamps of 7 and 10."""

BOUND_TO_EXACT = {False: 1e-6, True: 5e-3}
BOUND_TO_REFERENCE = {False: 1e-6, True: 1e-3}
"""Relative L2, rounding 0 and 1. A clamp, a bias or an offset that is forgotten makes more than 3e-2."""


def loud_case(weight_format: Format, hidden: int, inter: int, between: Between) -> Case:
    made = case(weight_format, hidden, inter, GROUP_SIZES, between=between)
    return made._replace(x=(LOUD * made.x).bfloat16().float())


def run(isa: Isa, of: Case, *, is_rounded: bool) -> torch.Tensor:
    kernels = CpuKernels(2, isa)
    return kernels.grouped_swiglu(of.packed, of.x, of.row_idx, of.offsets, of.topk_weights, is_rounded=is_rounded)


def reference(of: Case, *, is_rounded: bool) -> torch.Tensor:
    return grouped_swiglu(of.plain, of.x, of.row_idx, of.offsets, of.topk_weights, is_rounded=is_rounded)


@needs_kernels
@pytest.mark.parametrize("between", VARIANTS)
@pytest.mark.parametrize("weight_format", Format)
def test_every_path_clamps_scales_and_adds_biases_as_the_reference_does(
    weight_format: Format, between: Between
) -> None:
    of = loud_case(weight_format, 200, 136, between)
    truth = exact(of)
    for is_rounded in (False, True):
        theirs = reference(of, is_rounded=is_rounded)
        assert distance(theirs, truth) <= BOUND_TO_EXACT[is_rounded]
        for isa in ISAS:
            ours = run(isa, of, is_rounded=is_rounded)
            assert distance(ours, truth) <= BOUND_TO_EXACT[is_rounded]
            assert distance(ours, theirs) <= BOUND_TO_REFERENCE[is_rounded]


@needs_kernels
@pytest.mark.parametrize(("hidden", "inter"), [(2880, 72), (72, 2880), (34, 30)])
@pytest.mark.parametrize("weight_format", [Format.MXFP4, Format.BF16, Format.FP8_BLOCK])
def test_widths_of_gpt_oss_which_are_no_multiple_of_128(weight_format: Format, hidden: int, inter: int) -> None:
    of = loud_case(weight_format, hidden, inter, GPT_OSS_EXPERT)
    theirs = reference(of, is_rounded=True)
    for isa in ISAS:
        assert distance(run(isa, of, is_rounded=True), theirs) <= BOUND_TO_REFERENCE[True]


def test_these_rows_tell_every_part_of_an_activation_from_its_absence() -> None:
    of = loud_case(Format.F32, 200, 136, GPT_OSS_EXPERT)
    whole = reference(of, is_rounded=True)
    biases = of.plain[0].biases
    assert biases is not None
    without = {
        "limit": lambda each: replace(each, activation=replace(GPT_OSS, limit=math.inf)),
        "alpha": lambda each: replace(each, activation=replace(GPT_OSS, alpha=1.0)),
        "offset": lambda each: replace(each, activation=replace(GPT_OSS, up_offset=0.0)),
        "gate bias": lambda each: replace(each, biases=each.biases._replace(gate=0 * each.biases.gate)),
        "up bias": lambda each: replace(each, biases=each.biases._replace(up=0 * each.biases.up)),
        "down bias": lambda each: replace(each, biases=each.biases._replace(down=0 * each.biases.down)),
    }
    for what, forget in without.items():
        less = of._replace(plain=[forget(each) for each in of.plain])
        assert distance(reference(less, is_rounded=True), whole) > 1e-2, what


def test_the_clamp_cuts_gate_above_only_and_up_on_both_sides() -> None:
    gate, up = torch.tensor([20.0, -20.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 20.0, -20.0])
    h = activate(gate, up, Activation(limit=7.0))
    silu_1 = 1 / (1 + math.exp(-1))
    assert torch.allclose(h, torch.tensor([7 / (1 + math.exp(-7)), -20 / (1 + math.exp(20)), 7 * silu_1, -7 * silu_1]))


def test_silu_is_that_of_torch() -> None:
    gate, up = torch.randn(2, 5000, generator=torch.Generator().manual_seed(1)) * 4
    assert torch.equal(activate(gate, up, SILU), torch.nn.functional.silu(gate) * up)


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("is_rounded", [False, True])
def test_an_infinite_row_is_clamped_and_a_nan_is_not_hidden(isa: Isa, is_rounded: bool) -> None:
    packed, plain = expert(Format.F32, 64, 64, torch.Generator().manual_seed(0), GPT_OSS_EXPERT)
    x = torch.zeros(2, 64)
    x[0, 3] = math.nan
    one = torch.ones(2)
    for y in (
        CpuKernels(1, isa).grouped_swiglu([packed], x, torch.arange(2), [0, 2], one, is_rounded=is_rounded),
        grouped_swiglu([plain], x, torch.arange(2), [0, 2], one, is_rounded=is_rounded),
    ):
        assert y[0].isnan().all()
        assert y[1].isfinite().all()


@needs_kernels
def test_experts_of_one_call_may_have_activations_and_biases_of_their_own() -> None:
    plain_case, gpt_oss = case(Format.BF16, 72, 40, [3]), loud_case(Format.BF16, 72, 40, GPT_OSS_EXPERT)
    both = gpt_oss._replace(
        packed=[plain_case.packed[0], gpt_oss.packed[0]], plain=[plain_case.plain[0], gpt_oss.plain[0]],
        row_idx=torch.tensor([0, 1, 2, 0, 1]), offsets=[0, 3, 5], topk_weights=torch.rand(5),
    )  # fmt: skip
    for isa in ISAS:
        assert distance(run(isa, both, is_rounded=True), reference(both, is_rounded=True)) <= BOUND_TO_REFERENCE[True]


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": math.nan}, {"limit": -7.0}, {"limit": 0.0}, {"alpha": math.nan}, {"alpha": 0.0}, {"alpha": math.inf},
        {"up_offset": math.nan}, {"up_offset": math.inf},
    ],
)  # fmt: skip
def test_an_activation_that_means_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
        Activation(**wrong)
    if cpu.is_available():
        stored = PackedMatrix(Format.F32, 8, 8, torch.zeros(8, 8), None).native
        numbers = {"limit": 7.0, "alpha": 1.0, "up_offset": 0.0} | wrong
        with pytest.raises(ValueError, match=next(iter(wrong))):
            cpu._module().expert(stored, stored, stored, tuple(numbers.values()), None)


@needs_kernels
@pytest.mark.parametrize(
    ("name", "bias"),
    [
        ("gate", torch.zeros(7)), ("up", torch.zeros(9)), ("down", torch.zeros(8)), ("down", torch.zeros(0)),
        ("gate", torch.zeros(8, 1)), ("gate", torch.zeros(8, dtype=torch.bfloat16)),
        ("up", torch.zeros(8, dtype=torch.float64)), ("up", torch.full((8,), math.nan)),
        ("down", torch.full((6,), math.inf)), ("gate", torch.zeros(16)[::2]),
    ],
)  # fmt: skip
def test_a_bias_that_does_not_fit_is_refused(name: str, bias: torch.Tensor) -> None:
    wide = PackedMatrix(Format.F32, 8, 6, torch.zeros(8, 6), None)
    down = PackedMatrix(Format.F32, 6, 8, torch.zeros(6, 8), None)
    biases = Biases(torch.zeros(8), torch.zeros(8), torch.zeros(6))
    with pytest.raises(ValueError, match=name):
        PackedSwiGLU(wide, wide, down, SILU, biases._replace(**{name: bias}))


@needs_kernels
def test_memory_counts_the_biases() -> None:
    with_biases, plain = (
        expert(Format.BF16, 72, 200, torch.Generator().manual_seed(0), Between(has_biases=has))[0]
        for has in (True, False)
    )
    assert with_biases.size_bytes - plain.size_bytes == cpu.bias_bytes(200, 72) == 4 * (256 + 256 + 128)
