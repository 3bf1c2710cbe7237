"""fp8 blocks: exact decoding, nearest rounding, ragged edges."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from shoal.kernels import formats


def _slow_dequantize(data: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Element by element as README_WEIGHTS says it."""
    values = data.float()
    for row in range(data.shape[0]):
        for column in range(data.shape[1]):
            values[row, column] *= scale[row // 128, column // 128]
    return values


def _random_matrix(out_size: int, in_size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(out_size, 1, generator=generator) * 4
    return torch.randn(out_size, in_size, generator=generator) * spread.exp()


def test_every_e4m3_byte_decodes_to_the_value_of_its_bits() -> None:
    data = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)[None]
    values = formats.dequantize_fp8_block(data, torch.ones(1, 2))[0]
    for byte, value in enumerate(values.tolist()):
        sign, exponent, mantissa = -1 if byte & 0x80 else 1, byte >> 3 & 15, byte & 7
        if byte & 0x7F == formats.E4M3_NAN:
            assert value != value
        elif exponent == 0:
            assert value == sign * mantissa * 2.0**-9
        else:
            assert value == sign * (8 + mantissa) * 2.0 ** (exponent - 10)


@pytest.mark.parametrize("is_power_of_two", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (128, 128), (80, 256), (129, 127), (136, 300)])
def test_dequantization_multiplies_each_ragged_block_by_its_own_scale(
    shape: tuple[int, int], is_power_of_two: bool
) -> None:
    data, scale = formats.quantize_fp8_block(_random_matrix(*shape), is_scale_power_of_two=is_power_of_two)
    assert scale.shape == (formats.num_blocks(shape[0]), formats.num_blocks(shape[1]))
    assert torch.equal(formats.dequantize_fp8_block(data, scale), _slow_dequantize(data, scale))


@pytest.mark.parametrize("kind", ["f32", "e8m0", "u8"])
def test_dequantization_equals_transformers(kind: str) -> None:
    data, scale = formats.quantize_fp8_block(_random_matrix(256, 384), is_scale_power_of_two=kind != "f32")
    if kind != "f32":
        scale = formats.encode_e8m0(scale)
    if kind == "u8":
        scale = scale.view(torch.uint8)
    theirs = Fp8Dequantize(None)._dequantize_one(data, scale, output_dtype=torch.float32)
    assert torch.equal(formats.dequantize_fp8_block(data, scale), theirs)


def test_power_of_two_scales_survive_bf16_exactly() -> None:
    data, scale = formats.quantize_fp8_block(_random_matrix(200, 200), is_scale_power_of_two=True)
    values = formats.dequantize_fp8_block(data, scale)
    assert torch.equal(values.bfloat16().float(), values)


def test_ue8m0_bytes_mean_powers_of_two_over_their_whole_range() -> None:
    values = formats.decode_scale(torch.arange(256, dtype=torch.uint8)).tolist()
    assert values[:255] == [2.0 ** (byte - 127) for byte in range(255)]
    assert values[255] != values[255]


def test_encoded_scales_decode_to_themselves() -> None:
    scale = torch.tensor([2.0**-126, 2.0**-20, 1.0, 2.0**127])
    assert torch.equal(formats.decode_scale(formats.encode_e8m0(scale)), scale)
    with pytest.raises(ValueError, match="power of two"):
        formats.encode_e8m0(torch.tensor([3.0]))


@given(
    out_size=st.integers(1, 260),
    in_size=st.integers(1, 260),
    seed=st.integers(0, 99),
    is_power_of_two=st.booleans(),
)
def test_quantization_rounds_to_the_nearest_value(
    out_size: int, in_size: int, seed: int, is_power_of_two: bool
) -> None:
    weight = _random_matrix(out_size, in_size, seed)
    data, scale = formats.quantize_fp8_block(weight, is_scale_power_of_two=is_power_of_two)
    step = formats.expand_scale(scale, out_size, in_size)
    scaled = weight / step
    assert float(scaled.abs().max()) <= formats.E4M3_MAX * (1 + 1e-6)
    error = (data.float() - scaled).abs()
    bound = torch.maximum(scaled.abs() / 16, torch.tensor(2.0**-10))
    assert bool((error <= bound * (1 + 1e-6)).all())


def test_a_tie_goes_to_the_even_neighbour() -> None:
    weight = torch.tensor([[448.0, 17.0, 19.0, 2.0**-10, 3 * 2.0**-10]])  # 17 lies between 16 and 18, 19: 18 and 20
    data, scale = formats.quantize_fp8_block(weight)
    assert scale.item() == 1.0
    assert data.float().tolist() == [[448.0, 16.0, 20.0, 0.0, 2.0**-8]]


@pytest.mark.parametrize("is_power_of_two", [False, True])
@pytest.mark.parametrize("value", [0.0, 1e-44, 1e-30, 3e38])
def test_extreme_blocks_stay_finite(value: float, is_power_of_two: bool) -> None:
    weight = torch.full((3, 5), value)
    data, scale = formats.quantize_fp8_block(weight, is_scale_power_of_two=is_power_of_two)
    assert bool((scale > 0).all())
    assert bool(formats.dequantize_fp8_block(data, scale).isfinite().all())


def test_a_scale_of_the_wrong_shape_or_dtype_is_refused() -> None:
    data, scale = formats.quantize_fp8_block(torch.randn(129, 5))
    with pytest.raises(ValueError, match=r"scale has shape \[1, 2\], data \[129, 5\] needs \[2, 1\]"):
        formats.dequantize_fp8_block(data, scale.T)
    with pytest.raises(ValueError, match="float16"):
        formats.dequantize_fp8_block(data, scale.half())
    with pytest.raises(ValueError, match="not a matrix of float8_e4m3fn"):
        formats.dequantize_fp8_block(data.float(), scale)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_not_quantized(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        formats.quantize_fp8_block(torch.full((2, 2), value))
