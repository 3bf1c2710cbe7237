"""The reference back end behind its seam: what it refuses, what it costs."""

from dataclasses import replace

import pytest
import torch

from shoal.experts.backend import ExpertBackend, ExpertWeights, QuantizedWeight
from shoal.experts.family import ExpertSpec
from shoal.experts.reference_backend import ReferenceBackend
from shoal.experts.weight_formats import expert_shapes, quantize_expert
from shoal.kernels.formats import encode_e8m0, quantize_fp8_block
from shoal.protocol.errors import CheckpointError, InvalidRequest
from shoal.protocol.messages import Rounding, WeightFormat

SPEC = ExpertSpec(hidden=136, inter=40)


def _weights(weight_format: WeightFormat, spec: ExpertSpec = SPEC, *, is_ue8m0: bool = False) -> ExpertWeights:
    shapes = expert_shapes(spec)
    matrices = {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(i))
        for i, (name, shape) in enumerate(shapes.items())
    }
    if not is_ue8m0:
        return quantize_expert(matrices, weight_format, "a file: an expert")
    pairs = [quantize_fp8_block(matrix, is_scale_power_of_two=True) for matrix in matrices.values()]
    gate, up, down = (QuantizedWeight(data, encode_e8m0(scale)) for data, scale in pairs)
    return ExpertWeights(weight_format, gate, up, down, origin="a file: an expert")


RUNNABLE = tuple(WeightFormat)


@pytest.mark.parametrize("weight_format", RUNNABLE)
def test_memory_is_what_was_said_and_nothing_of_the_stored_tensors_is_kept(weight_format: WeightFormat) -> None:
    backend: ExpertBackend = ReferenceBackend()
    weights = _weights(weight_format)
    packed = backend.pack(SPEC, weights)
    assert packed.resident_bytes == backend.resident_bytes(SPEC, weight_format) == 12 * 136 * 40
    before = _run(backend, [packed])
    for weight in (weights.gate, weights.up, weights.down):
        weight.data.view(torch.uint8).zero_()
    assert torch.equal(_run(backend, [packed]), before)


@pytest.mark.parametrize("weight_format", RUNNABLE)
def test_a_view_into_a_large_buffer_does_not_keep_it_alive(weight_format: WeightFormat) -> None:
    weights = _weights(weight_format)
    large = torch.cat([weights.gate.data.view(torch.uint8), weights.gate.data.view(torch.uint8)])
    view = large[: SPEC.inter].view(weights.gate.data.dtype)
    packed = ReferenceBackend().pack(SPEC, replace(weights, gate=QuantizedWeight(view, weights.gate.scale)))
    assert packed.resident_bytes == 12 * 136 * 40


def test_scales_in_ue8m0_mean_the_same_as_in_fp32() -> None:
    stored = _weights(WeightFormat.FP8_BLOCK, is_ue8m0=True)
    assert stored.up.scale is not None
    plain = replace(stored, up=QuantizedWeight(stored.up.data, stored.up.scale.float()))
    as_bytes = replace(stored, up=QuantizedWeight(stored.up.data, stored.up.scale.view(torch.uint8)))
    backend = ReferenceBackend()
    answers = [_run(backend, [backend.pack(SPEC, weights)]) for weights in (stored, plain, as_bytes)]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def _with(projection: str, data: torch.Tensor, scale: torch.Tensor | None, of: ExpertWeights) -> ExpertWeights:
    weight = QuantizedWeight(data, scale)
    gate, up, down = (weight if name == projection else getattr(of, name) for name in ("gate", "up", "down"))
    return replace(of, gate=gate, up=up, down=down)


@pytest.mark.parametrize("projection", ["gate", "up", "down"])
def test_a_weight_that_does_not_fit_is_refused_by_name(projection: str) -> None:
    plain, fp8 = _weights(WeightFormat.F32), _weights(WeightFormat.FP8_BLOCK)
    right: QuantizedWeight = getattr(plain, projection)
    right8: QuantizedWeight = getattr(fp8, projection)
    assert right8.scale is not None
    bad = {
        "shape": _with(projection, right.data.T.contiguous(), None, plain),
        "torch.float16": _with(projection, right.data.half(), None, plain),
        "block scales, which F32": _with(projection, right.data, right8.scale, plain),
        "no block scales": _with(projection, right8.data, None, fp8),
        "scale has shape": _with(projection, right8.data, torch.ones(3, 3), fp8),
        "scales of torch.float64": _with(projection, right8.data, right8.scale.double(), fp8),
    }
    for words, weights in bad.items():
        with pytest.raises(CheckpointError) as caught:
            ReferenceBackend().pack(SPEC, weights)
        assert (caught.value.file, caught.value.tensor) == ("a file: an expert", projection)
        assert words in caught.value.reason


@pytest.mark.parametrize("byte", [0x7F, 0xFF])
def test_an_fp8_nan_is_refused(byte: int) -> None:
    weights = _weights(WeightFormat.FP8_BLOCK)
    weights.down.data.view(torch.uint8)[130, 3] = byte
    with pytest.raises(CheckpointError, match="tensor down: fp8 NaN"):
        ReferenceBackend().pack(SPEC, weights)


@pytest.mark.parametrize("weight_format", RUNNABLE)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_refused(weight_format: WeightFormat, value: float) -> None:
    weights = _weights(weight_format)
    target = weights.up.data if weights.up.scale is None else weights.up.scale
    if target.dtype is torch.float8_e8m0fnu:
        target = target.view(torch.uint8)
        value = 255
    target[0, 0] = value
    with pytest.raises(CheckpointError, match="tensor up: a value that is not finite"):
        ReferenceBackend().pack(SPEC, weights)


def test_a_scale_that_overflows_fp32_is_refused() -> None:
    weights = _weights(WeightFormat.FP8_BLOCK)
    assert weights.gate.scale is not None
    weights.gate.scale.fill_(3e38)
    with pytest.raises(CheckpointError, match="not finite"):
        ReferenceBackend().pack(SPEC, weights)


X, ROWS, OFFSETS, WEIGHTS = torch.ones(3, 136), torch.tensor([0, 2]), [0, 2], torch.ones(2)


def _run(
    backend: ExpertBackend,
    experts: list[object],
    x: torch.Tensor = X,
    row_idx: torch.Tensor = ROWS,
    offsets: list[int] = OFFSETS,
    topk_weights: torch.Tensor = WEIGHTS,
) -> torch.Tensor:
    return backend.run(experts, x, row_idx, offsets, topk_weights, Rounding.FP32)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"x": torch.ones(136)}, "not a matrix"),
        ({"x": torch.ones(3, 136).half()}, "float16"),
        ({"x": torch.ones(3, 135)}, "width 135, the expert 136"),
        ({"row_idx": torch.tensor([0, 3])}, r"row_idx 0\.\.3 for 3 rows"),
        ({"row_idx": torch.tensor([-1, 2])}, r"row_idx -1\.\.2"),
        ({"row_idx": torch.tensor([0, 2], dtype=torch.int32)}, "int32"),
        ({"row_idx": torch.tensor([[0, 2]])}, "not a list of int64"),
        ({"topk_weights": torch.ones(3)}, "topk_weights"),
        ({"topk_weights": torch.ones(2).double()}, "topk_weights"),
        ({"offsets": [0, 1]}, "must ascend from 0 to 2 in 2 entries"),
        ({"offsets": [0, 3]}, "must ascend"),
        ({"offsets": [0]}, "must ascend"),
        ({"offsets": []}, "must ascend"),
        ({"offsets": [0, 1, 2]}, "must ascend"),
        ({"offsets": [1, 2]}, "must ascend"),
    ],
)
def test_rows_that_contradict_each_other_are_refused(arguments: dict[str, object], words: str) -> None:
    backend = ReferenceBackend()
    packed = backend.pack(SPEC, _weights(WeightFormat.F32))
    with pytest.raises(InvalidRequest, match=words):
        _run(backend, [packed], **arguments)  # type: ignore[arg-type]


def test_descending_offsets_are_refused() -> None:
    backend = ReferenceBackend()
    packed = backend.pack(SPEC, _weights(WeightFormat.F32))
    with pytest.raises(InvalidRequest, match="must ascend"):
        _run(backend, [packed] * 3, offsets=[0, 2, 1, 2])


def test_another_back_end_s_expert_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="packed by another back end: str"):
        _run(ReferenceBackend(), ["an expert"])


def test_an_answer_is_a_plain_tensor_that_may_be_written_to() -> None:
    backend = ReferenceBackend()
    y = _run(backend, [backend.pack(SPEC, _weights(WeightFormat.BF16))])
    assert (y.dtype, y.shape, y.requires_grad, y.is_inference()) == (torch.float32, (3, 136), False, False)
    assert torch.equal(y[1], torch.zeros(136))
