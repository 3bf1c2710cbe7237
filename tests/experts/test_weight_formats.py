"""The table of formats: bytes as said, one expert there and back, refusals by name."""

from dataclasses import replace

import pytest
import torch

from shoal.experts.backend import QuantizedWeight
from shoal.experts.family import ExpertSpec
from shoal.experts.weight_formats import STORED, dequantize_expert, expert_shapes, quantize_expert, stored_bytes
from shoal.protocol.errors import CheckpointError
from shoal.protocol.messages import WeightFormat

SPEC = ExpertSpec(hidden=136, inter=40)
V3 = ExpertSpec(hidden=7168, inter=2048)


def _matrices(spec: ExpertSpec = SPEC) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for name, shape in expert_shapes(spec).items()}


@pytest.mark.parametrize("weight_format", WeightFormat)
def test_an_expert_takes_the_bytes_that_were_said(weight_format: WeightFormat) -> None:
    weights = quantize_expert(_matrices(), weight_format, "a test")
    stored = [tensor for w in (weights.gate, weights.up, weights.down) for tensor in (w.data, w.scale)]
    assert sum(tensor.nbytes for tensor in stored if tensor is not None) == stored_bytes(SPEC, weight_format)


@pytest.mark.parametrize(
    ("weight_format", "megabytes"),
    [
        (WeightFormat.FP8_BLOCK, 44.05),
        (WeightFormat.BF16, 88.08),
        (WeightFormat.INT8_G128, 44.73),
        (WeightFormat.INT4_G32, 24.77),
        (WeightFormat.INT4_G128, 22.71),
        (WeightFormat.MXFP4, 23.40),
    ],
)
def test_a_deepseek_v3_expert_has_the_size_of_the_notes(weight_format: WeightFormat, megabytes: float) -> None:
    assert round(stored_bytes(V3, weight_format) / 1e6, 2) == megabytes


@pytest.mark.parametrize("weight_format", WeightFormat)
def test_storing_twice_gives_the_same_bytes(weight_format: WeightFormat) -> None:
    first, second = (quantize_expert(_matrices(), weight_format, "a test") for _ in range(2))
    for one, other in zip((first.gate, first.up, first.down), (second.gate, second.up, second.down), strict=True):
        assert torch.equal(one.data.view(torch.uint8), other.data.view(torch.uint8))
        if one.scale is not None and other.scale is not None:
            assert torch.equal(one.scale.view(torch.uint8), other.scale.view(torch.uint8))


def test_a_weight_that_a_format_can_not_hold_is_refused_by_name() -> None:
    matrices = _matrices()
    matrices["up"][3, 3] = torch.inf
    with pytest.raises(CheckpointError, match="tensor up") as caught:
        quantize_expert(matrices, WeightFormat.INT4_G32, "a file: an expert")
    assert caught.value.file == "a file: an expert"


@pytest.mark.parametrize("weight_format", [f for f in WeightFormat if STORED[f].codes_per_item == 2])
def test_an_odd_width_has_no_4_bit_form(weight_format: WeightFormat) -> None:
    weights = quantize_expert(_matrices(), weight_format, "a test")
    with pytest.raises(CheckpointError, match="even number"):
        dequantize_expert(ExpertSpec(hidden=135, inter=40), weights)


@pytest.mark.parametrize("weight_format", [f for f in WeightFormat if STORED[f].scale_block])
def test_scales_of_another_shape_are_refused(weight_format: WeightFormat) -> None:
    weights = quantize_expert(_matrices(), weight_format, "a test")
    assert weights.down.scale is not None
    for scale, words in ((None, "no block scales"), (weights.down.scale[1:], "scale has shape")):
        wrong = replace(weights, down=QuantizedWeight(weights.down.data, scale))
        with pytest.raises(CheckpointError, match=words):
            dequantize_expert(SPEC, wrong)
