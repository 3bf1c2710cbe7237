"""Formats of hidden states: what they lose is bounded, equal rows are equal bytes, and no bytes are taken on trust."""

import math
from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol.dtypes import TAKEN, DType, from_bits, num_blocks, row_bytes, to_bits
from shoal.protocol.errors import InvalidRequest, Malformed, NonFinite
from shoal.protocol.tensors import LARGEST, ROWS_IN_CACHE, decode_rows, encode_rows, tensor_bytes

INEXACT = (DType.BF16, DType.FP8, DType.INT8)
SCALED = (DType.FP8, DType.INT8)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def through(x: torch.Tensor, dtype: DType) -> torch.Tensor:
    return decode_rows(tensor_bytes(encode_rows(x, dtype)), dtype, *x.shape).to(torch.float32)


def bounds(x: torch.Tensor, dtype: DType) -> torch.Tensor:
    """What `encode_rows` promises for every value of one block, in fp64; below 2^-100 anything may become 0."""
    values, largest = x.double().abs(), x.double().abs().amax(-1, keepdim=True)
    if dtype is DType.BF16:
        return values * 2.0**-8 + 2.0**-134
    if dtype is DType.FP8:
        return torch.maximum(values * 2.0**-4, largest * 2.0**-17) + 2.0**-100
    return largest / 252 + 2.0**-100


@given(st.lists(FLOATS, min_size=1, max_size=24), st.sampled_from(INEXACT))
def test_no_value_is_further_off_than_the_formats_bound(values, dtype):
    x = torch.tensor([values]).clamp(-LARGEST, LARGEST)
    assert ((through(x, dtype).double() - x.double()).abs() <= bounds(x, dtype)).all()


@pytest.mark.parametrize("dtype", INEXACT)
@pytest.mark.parametrize("value", [3.4028234e38, -3.4028234e38, 1e-45, -0.0, 448.0, 449.0, 127.0])
def test_the_ends_of_the_range_arrive_finite(dtype, value):
    arrived = through(torch.full((1, 3), value), dtype)
    assert torch.isfinite(arrived).all()
    assert abs(float(arrived[0, 0])) <= LARGEST


@pytest.mark.parametrize("dtype", DType)
@pytest.mark.parametrize("hidden", [1, 127, 128, 129, 200, 256, 7168])
def test_a_row_takes_the_bytes_that_its_header_implies(dtype, hidden):
    assert len(tensor_bytes(encode_rows(torch.ones(3, hidden), dtype))) == 3 * row_bytes(dtype, hidden)


@pytest.mark.parametrize("dtype", DType)
def test_a_row_has_the_same_bytes_in_any_company(dtype):
    x = torch.randn(3 * ROWS_IN_CACHE + 1, 200, generator=torch.Generator().manual_seed(5))
    together = encode_rows(x, dtype)
    for row in (0, ROWS_IN_CACHE - 1, ROWS_IN_CACHE, 3 * ROWS_IN_CACHE):
        assert torch.equal(together[row : row + 1], encode_rows(x[row : row + 1], dtype))
    assert torch.equal(through(x, dtype)[7:9], through(x[7:9], dtype))


@pytest.mark.parametrize("dtype", DType)
def test_rows_of_bf16_numbers_survive_what_is_not_scaled(dtype):
    x = torch.randn(2, 200, generator=torch.Generator().manual_seed(5)).to(torch.bfloat16)
    assert torch.equal(through(x, dtype), x.float()) == (dtype not in SCALED)


def test_every_fp8_number_and_scale_is_what_torch_says_it_is():
    codes = torch.tensor([code for code in range(256) if code & 0x7F != 0x7F], dtype=torch.uint8)
    numbers = codes.view(torch.float8_e4m3fn).to(torch.float64)
    for scale in range(1, 247):  # beyond them 448 is no fp32 number
        raw = torch.cat([codes, torch.full((2,), scale, dtype=torch.uint8)]).unsqueeze(0)
        arrived = decode_rows(tensor_bytes(raw), DType.FP8, 1, len(codes))
        assert torch.equal(arrived[0], (numbers * 2.0 ** (scale - 127)).to(torch.float32)), scale


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_an_fp8_nan_is_refused(code):
    with pytest.raises(NonFinite):
        decode_rows(bytes([0, code, 127]), DType.FP8, 1, 2)


@pytest.mark.parametrize("scale", [0, 255])
def test_an_fp8_scale_that_no_encoder_writes_is_refused(scale):
    with pytest.raises(Malformed):
        decode_rows(bytes([0x38, 0x38, scale]), DType.FP8, 1, 2)


def test_an_fp8_number_beyond_fp32_is_refused():
    with pytest.raises(NonFinite):
        decode_rows(bytes([0x7E, 0x38, 254]), DType.FP8, 1, 2)


@pytest.mark.parametrize("bits", [0x0000, 0x007F, 0x7F80, 0x7FC0, 0x8000, 0xBF80, 0xFFFF])
def test_an_int8_scale_that_is_not_positive_normal_and_finite_is_refused(bits):
    with pytest.raises(Malformed):
        decode_rows(bytes([1, 2]) + bits.to_bytes(2, "little"), DType.INT8, 1, 2)


def test_the_int8_value_without_a_negative_is_refused():
    with pytest.raises(Malformed):
        decode_rows(bytes([1, 0x80]) + (0x3F80).to_bytes(2, "little"), DType.INT8, 1, 2)


def test_an_int8_number_beyond_fp32_is_refused():
    with pytest.raises(NonFinite):
        decode_rows(bytes([1, 0x7F]) + (0x7F7F).to_bytes(2, "little"), DType.INT8, 1, 2)


@pytest.mark.parametrize("dtype", SCALED)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_block_that_is_not_finite_is_never_made_into_bytes(dtype, value):
    x = torch.ones(2, 200)
    x[1, 150] = value
    if math.isnan(value):
        with pytest.raises(InvalidRequest):
            encode_rows(x, dtype)
    else:
        assert torch.isfinite(through(x, dtype)).all()


@given(st.lists(st.integers(0, 255), min_size=6, max_size=6), st.sampled_from(SCALED))
def test_any_bytes_are_finite_numbers_or_a_typed_error(data, dtype):
    hidden = 6 - num_blocks(6) * (1 if dtype is DType.FP8 else 2)
    with suppress(Malformed, NonFinite):
        assert torch.isfinite(decode_rows(bytes(data), dtype, 1, hidden)).all()


def test_a_set_of_formats_survives_its_bits_and_unknown_ones_are_left_aside():
    assert from_bits(to_bits(TAKEN)) == TAKEN
    assert from_bits(0) == frozenset()
    assert from_bits(1 << 9 | 1 << DType.FP8) == {DType.FP8}
