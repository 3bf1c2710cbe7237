"""mxfp4: the specification's numbers, ties and saturation; the error as stated."""

import pytest
import torch

from shoal.kernels import mxfp4
from tests.kernels.gaussian_expert import gaussian_expert, output, relative


def _round_trip(weight: torch.Tensor) -> torch.Tensor:
    return mxfp4.dequantize_mxfp4(*mxfp4.quantize_mxfp4(weight))


def _specification(weight: torch.Tensor) -> torch.Tensor:
    """OCP MX 1.0 §6.3: exponent floor(log2(amax)) - 2, nearest value, saturating; written another way than ours."""
    groups = weight.double().reshape(-1, 32)
    scale = (groups.abs().amax(dim=1, keepdim=True).log2().floor() - 2).exp2()
    table = torch.tensor(mxfp4.E2M1_VALUES, dtype=torch.float64)
    nearest = ((groups / scale).abs()[..., None] - table).abs().argmin(dim=-1)
    return (table[nearest] * groups.sign() * scale).view(weight.shape)


def test_the_error_is_as_stated_and_below_the_specification_s_conversion() -> None:
    expert = gaussian_expert()
    ours = {key: _round_trip(weight) for key, weight in expert.items()}
    plain = {key: _specification(weight) for key, weight in expert.items()}
    for key, weight in expert.items():
        assert relative(ours[key], weight) <= 0.113
        assert relative(ours[key], weight) <= 0.98 * relative(plain[key], weight)
    error, baseline = (relative(output(weights), output(expert)) for weights in (ours, plain))
    assert error <= 0.2
    assert error <= 0.99 * baseline


def test_every_code_decodes_to_the_value_of_its_bits() -> None:
    data = torch.tensor([[low | (low + 1) << 4 for low in range(0, 16, 2)]], dtype=torch.uint8)
    values = mxfp4.dequantize_mxfp4(data, torch.tensor([[127]], dtype=torch.uint8))[0].tolist()
    for code, value in enumerate(values):
        sign, exponent, mantissa = -1 if code & 8 else 1, code >> 1 & 3, code & 1
        expected = mantissa * 0.5 if exponent == 0 else (2 + mantissa) * 2.0 ** (exponent - 2)
        assert value == sign * expected


def test_numbers_of_the_format_survive_and_ties_go_to_the_even_code() -> None:
    exact = torch.tensor([[0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.5, -6.0]])
    assert torch.equal(_round_trip(exact), exact)
    ties = torch.tensor([[6.0, 6.0, 6.0, 6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.75]])
    expected = [[6.0, 6.0, 6.0, 6.0, 0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, -1.0]]
    assert _round_trip(ties).tolist() == expected


@pytest.mark.parametrize("shape", [(1, 2), (3, 30), (2, 64), (5, 100)])
def test_scales_belong_to_32_columns_and_the_last_may_be_ragged(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape)
    data, scale = mxfp4.quantize_mxfp4(weight)
    assert data.shape == (shape[0], shape[1] // 2)
    assert scale.shape == (shape[0], -(-shape[1] // 32))
    values = mxfp4.dequantize_mxfp4(data, scale)
    for row in range(shape[0]):
        for column in range(shape[1]):
            code = int(data[row, column // 2]) >> (4 * (column % 2)) & 15
            value = mxfp4.E2M1_VALUES[code & 7] * (-1 if code & 8 else 1)
            assert float(values[row, column]) == value * float(scale[row, column // 32])
    assert torch.equal(values.bfloat16().float(), values)
    assert torch.equal(mxfp4.dequantize_mxfp4(data, scale.view(torch.uint8)), values)


def test_the_bytes_depend_on_the_weights_alone() -> None:
    weight = gaussian_expert()["up"][:100, :320]
    data, scale = mxfp4.quantize_mxfp4(weight)
    some_data, some_scale = mxfp4.quantize_mxfp4(weight[37:41].clone())
    assert torch.equal(some_data, data[37:41])
    assert torch.equal(some_scale.view(torch.uint8), scale.view(torch.uint8)[37:41])


def test_zeros_are_zero_and_a_scale_of_255_is_nan() -> None:
    assert torch.equal(_round_trip(torch.zeros(2, 40)), torch.zeros(2, 40))
    data, scale = mxfp4.quantize_mxfp4(torch.ones(1, 32))
    scale.view(torch.uint8)[0, 0] = 255
    assert bool(mxfp4.dequantize_mxfp4(data, scale).isnan().all())


def test_what_does_not_belong_together_is_refused() -> None:
    data, scale = mxfp4.quantize_mxfp4(torch.randn(3, 64))
    with pytest.raises(ValueError, match=r"needs \[3, 2\]"):
        mxfp4.dequantize_mxfp4(data, scale[:, :1])
    with pytest.raises(ValueError, match=r"scales of torch\.float32"):
        mxfp4.dequantize_mxfp4(data, torch.ones(3, 2))
    with pytest.raises(ValueError, match="not a matrix of uint8"):
        mxfp4.dequantize_mxfp4(data.to(torch.int8), scale)
    with pytest.raises(ValueError, match="even number"):
        mxfp4.quantize_mxfp4(torch.randn(3, 33))
    with pytest.raises(ValueError, match="finite"):
        mxfp4.quantize_mxfp4(torch.full((1, 32), torch.inf))
