"""int8 and int4: exact decoding, documented bytes, errors as stated, the same bytes every time."""

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.kernels import int_groups
from shoal.kernels.scale_search import significant_bits_at_most
from tests.kernels.gaussian_expert import absmax, gaussian_expert, output, relative

FORMATS = ("int8", "int4 g32", "int4 g128")


def _quantize(name: str, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if name == "int8":
        return int_groups.quantize_int8(weight)
    return int_groups.quantize_int4(weight, int(name.partition(" g")[2]))


def _dequantize(name: str, data: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    if name == "int8":
        return int_groups.dequantize_int8(data, scale)
    return int_groups.dequantize_int4(data, scale, int(name.partition(" g")[2]))


def _round_trip(name: str, weight: torch.Tensor) -> torch.Tensor:
    return _dequantize(name, *_quantize(name, weight))


@pytest.mark.parametrize(
    ("name", "group_size", "high", "of_weights", "of_output", "gain"),
    [
        ("int8", 128, 127, 0.0066, 0.0115, 0.995),
        ("int4 g32", 32, 7, 0.083, 0.145, 0.86),
        ("int4 g128", 128, 7, 0.099, 0.175, 0.85),
    ],
)
def test_errors_are_as_stated_and_below_absmax(
    name: str, group_size: int, high: int, of_weights: float, of_output: float, gain: float
) -> None:
    expert = gaussian_expert()
    ours = {key: _round_trip(name, weight) for key, weight in expert.items()}
    plain = {key: absmax(weight, group_size, high) for key, weight in expert.items()}
    for key, weight in expert.items():
        assert relative(ours[key], weight) <= of_weights
        assert relative(ours[key], weight) <= gain * relative(plain[key], weight)
    error, baseline = (relative(output(weights), output(expert)) for weights in (ours, plain))
    assert error <= of_output
    assert error <= gain * baseline


@pytest.mark.parametrize("group_size", [32, 128])
def test_an_outlier_does_not_cost_its_group_more_than_absmax_does(group_size: int) -> None:
    weight = torch.distributions.StudentT(torch.tensor(4.0)).sample((64, 1024))
    ours = _round_trip(f"int4 g{group_size}", weight)
    assert relative(ours, weight) <= 0.87 * relative(absmax(weight, group_size, 7), weight)


@pytest.mark.parametrize("group_size", [32, 128])
def test_every_int4_weight_is_a_bf16_number(group_size: int) -> None:
    data, scale = int_groups.quantize_int4(gaussian_expert()["gate"], group_size)
    assert significant_bits_at_most(scale, int_groups.INT4_SCALE_BITS)
    values = int_groups.dequantize_int4(data, scale, group_size)
    assert torch.equal(values.bfloat16().float(), values)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(1, 2), (3, 40), (5, 128), (2, 136), (4, 300)])
def test_decoding_is_element_by_element_what_the_layout_says(name: str, shape: tuple[int, int]) -> None:
    data, scale = _quantize(name, torch.randn(shape))
    group_size = 32 if name == "int4 g32" else 128
    values = _dequantize(name, data, scale)
    for row in range(shape[0]):
        for column in range(shape[1]):
            if name == "int8":
                code = int(data[row, column])
            else:
                code = (int(data[row, column // 2]) >> (4 * (column % 2)) & 15) - 8
            assert float(values[row, column]) == code * float(scale[row, column // group_size])


@pytest.mark.parametrize("name", FORMATS)
def test_the_bytes_depend_on_the_weights_alone(name: str) -> None:
    weight = gaussian_expert()["up"][:200, :600]
    whole_data, whole_scale = _quantize(name, weight)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again_data, again_scale = _quantize(name, weight.clone())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(again_data, whole_data)
    assert torch.equal(again_scale, whole_scale)
    some_data, some_scale = _quantize(name, weight[37:41])
    assert torch.equal(some_data, whole_data[37:41])
    assert torch.equal(some_scale, whole_scale[37:41])


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("int8", "4d016eb5ccc25aed"),
        ("int4 g32", "816ecee465e4c11a"),
        ("int4 g128", "0116fe567af94f3e"),
    ],
)
def test_the_bytes_are_those_of_every_other_machine(name: str, digest: str) -> None:
    weight = (torch.arange(64 * 512, dtype=torch.int64) * 2654435761 % 65_521).view(64, 512).float() - 32_760
    data, scale = _quantize(name, weight * weight.abs())  # no random numbers, whose bits a library may change
    stored = data.view(torch.uint8).numpy().tobytes() + scale.view(torch.int16).numpy().tobytes()
    assert hashlib.sha256(stored).hexdigest()[:16] == digest


@given(seed=st.integers(0, 999), exponent=st.integers(-90, 90), columns=st.sampled_from([2, 30, 32, 64, 128, 130, 256]))
def test_scaling_weights_by_a_power_of_two_scales_the_answer(seed: int, exponent: int, columns: int) -> None:
    weight = torch.randn(2, columns, generator=torch.Generator().manual_seed(seed))
    for name in FORMATS:
        values = _round_trip(name, weight)
        assert torch.equal(_round_trip(name, weight * 2.0**exponent), values * 2.0**exponent)


@given(seed=st.integers(0, 999))
def test_no_weight_inside_the_grid_is_farther_than_half_a_step(seed: int) -> None:
    weight = torch.randn(3, 256, generator=torch.Generator().manual_seed(seed))
    for name in FORMATS:
        group_size = 32 if name == "int4 g32" else 128
        data, scale = _quantize(name, weight)
        step = scale.float().repeat_interleave(group_size, dim=1)
        low, high = (-127, 127) if name == "int8" else (-8, 7)
        is_inside = (weight / step >= low) & (weight / step <= high)
        error = (_dequantize(name, data, scale) - weight).abs()
        assert bool((error <= step.abs() / 2 * (1 + 1e-6))[is_inside].all())


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_and_what_is_too_small_are_zero(name: str) -> None:
    for value in (0.0, -0.0, 1e-44, 1e-31):
        values = _round_trip(name, torch.full((2, 136), value))
        assert torch.equal(values, torch.zeros(2, 136))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2.0**101])
def test_weights_that_are_not_finite_or_far_too_large_are_refused(name: str, value: float) -> None:
    weight = torch.ones(2, 64)
    weight[1, 5] = value
    with pytest.raises(ValueError, match=r"finite|above"):
        _quantize(name, weight)


def test_what_does_not_belong_together_is_refused() -> None:
    data8, scale8 = int_groups.quantize_int8(torch.randn(3, 130))
    data4, scale4 = int_groups.quantize_int4(torch.randn(3, 130), 32)
    with pytest.raises(ValueError, match=r"scale has shape \[3, 5\]"):
        int_groups.dequantize_int8(data8, scale4)
    with pytest.raises(ValueError, match=r"scales of torch\.float32"):
        int_groups.dequantize_int8(data8, scale8.float())
    with pytest.raises(ValueError, match="not a matrix of int8"):
        int_groups.dequantize_int8(data4, scale4)
    with pytest.raises(ValueError, match="not a matrix of uint8"):
        int_groups.dequantize_int4(data8, scale8, 128)
    with pytest.raises(ValueError, match="groups of 64"):
        int_groups.dequantize_int4(data4, scale4, 64)
    with pytest.raises(ValueError, match="even number"):
        int_groups.quantize_int4(torch.randn(3, 131), 32)


def test_codes_and_scales_that_kernels_rely_on_not_to_exist_are_refused() -> None:
    data, scale = int_groups.quantize_int8(torch.randn(3, 128))
    data[1, 1] = -128
    with pytest.raises(ValueError, match="a code of -128"):
        int_groups.dequantize_int8(data, scale)
    data, scale = int_groups.quantize_int4(torch.randn(3, 128), 128)
    scale[2, 0] = 1 + 2.0**-6
    with pytest.raises(ValueError, match="more than 5 significant bits"):
        int_groups.dequantize_int4(data, scale, 128)
