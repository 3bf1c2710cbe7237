"""The C++ back end behind its seam: memory as said, the reference's answers, refusals by name, and who chooses it."""

from dataclasses import replace

import pytest
import torch

from shoal.experts.backend import ExpertBackend, ExpertWeights, QuantizedWeight
from shoal.experts.choose_backend import KernelChoice, choose_backend
from shoal.experts.cpu_backend import CpuBackend
from shoal.experts.family import ExpertSpec
from shoal.experts.reference_backend import ReferenceBackend
from shoal.kernels import cpu
from shoal.kernels.formats import encode_e8m0, quantize_fp8_block
from shoal.protocol.errors import CheckpointError, InvalidRequest
from shoal.protocol.messages import Rounding, WeightFormat

SPEC = ExpertSpec(hidden=136, inter=40)
needs_native = pytest.mark.skipif(not cpu.is_available(), reason="needs the C++ kernels, which were not built")


def _fp8_weights(*, is_ue8m0: bool = False) -> ExpertWeights:
    shapes = ((SPEC.inter, SPEC.hidden), (SPEC.inter, SPEC.hidden), (SPEC.hidden, SPEC.inter))
    stored = []
    for i, shape in enumerate(shapes):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(i))
        data, scale = quantize_fp8_block(matrix, is_scale_power_of_two=is_ue8m0)
        stored.append(QuantizedWeight(data, encode_e8m0(scale) if is_ue8m0 else scale))
    gate, up, down = stored
    return ExpertWeights(WeightFormat.FP8_BLOCK, gate, up, down, origin="a file: an expert")


def _run(backend: ExpertBackend, weights: ExpertWeights, rounding: Rounding = Rounding.FP32) -> torch.Tensor:
    x = torch.randn(6, SPEC.hidden, generator=torch.Generator().manual_seed(9))
    packed = backend.pack(SPEC, weights)
    return backend.run([packed], x, torch.tensor([4, 1, 0]), (0, 3), torch.tensor([0.5, 1.0, 2.0]), rounding)


@needs_native
def test_memory_is_what_was_said_and_fp8_stays_a_byte_a_weight() -> None:
    backend = choose_backend(KernelChoice.CPU, 1)
    packed = backend.pack(SPEC, _fp8_weights())
    assert packed.resident_bytes == backend.resident_bytes(SPEC, WeightFormat.FP8_BLOCK)
    weights = 3 * 2048 * 7168
    assert backend.resident_bytes(ExpertSpec(7168, 2048), WeightFormat.FP8_BLOCK) == weights + 4 * weights // 128**2
    assert backend.kernel_class == 1


@needs_native
@pytest.mark.parametrize("is_ue8m0", [False, True])
def test_answers_are_the_reference_backends(is_ue8m0: bool) -> None:
    weights = _fp8_weights(is_ue8m0=is_ue8m0)
    for rounding, bound in ((Rounding.FP32, 1e-6), (Rounding.BF16, 5e-3)):
        ours = _run(choose_backend(KernelChoice.CPU, 2), weights, rounding)
        theirs = _run(ReferenceBackend(), weights, rounding)
        assert float((ours - theirs).norm() / theirs.norm()) <= bound
        assert not ours[[2, 3, 5]].any()


@needs_native
def test_a_weight_that_does_not_fit_is_refused_by_name() -> None:
    weights, backend = _fp8_weights(), choose_backend(KernelChoice.CPU, 1)
    assert weights.up.scale is not None
    nan = weights.up.data.view(torch.uint8).clone().fill_(0x7F).view(torch.float8_e4m3fn)
    bad = {
        "fp8 NaN": QuantizedWeight(nan, weights.up.scale),
        "means torch.float8_e4m3fn": QuantizedWeight(weights.up.data.float(), weights.up.scale),
        "must have shape": QuantizedWeight(weights.up.data[1:], weights.up.scale),
        "no scales": QuantizedWeight(weights.up.data),
        "not finite": QuantizedWeight(weights.up.data, weights.up.scale * torch.inf),
        "scales of": QuantizedWeight(weights.up.data, weights.up.scale.double()),
    }
    for reason, weight in bad.items():
        with pytest.raises(CheckpointError, match=f"(?s)up.*{reason}"):
            backend.pack(SPEC, replace(weights, up=weight))


@needs_native
def test_a_call_that_contradicts_itself_is_refused() -> None:
    backend = choose_backend(KernelChoice.CPU, 1)
    packed, x, one = backend.pack(SPEC, _fp8_weights()), torch.zeros(2, SPEC.hidden), torch.ones(1)
    with pytest.raises(InvalidRequest, match="row_idx 2 for 2 rows"):
        backend.run([packed], x, torch.tensor([2]), (0, 1), one, Rounding.BF16)
    other = ReferenceBackend().pack(SPEC, _fp8_weights())
    with pytest.raises(InvalidRequest, match="another back end"):
        backend.run([other], x, torch.tensor([0]), (0, 1), one, Rounding.BF16)


@needs_native
def test_the_cpp_kernels_are_the_default() -> None:
    assert isinstance(choose_backend(KernelChoice.AUTO, 0), CpuBackend)
    assert isinstance(choose_backend(KernelChoice.REFERENCE, 1), ReferenceBackend)
    if not torch.cuda.is_available():
        with pytest.raises(InvalidRequest, match="CUDA"):
            choose_backend(KernelChoice.CUDA, 1)
    with pytest.raises(InvalidRequest, match="at most 1024"):
        choose_backend(KernelChoice.AUTO, 5000)


def test_without_them_the_reference_runs_and_one_line_says_what_it_costs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("shoal.kernels.cpu.is_available", lambda: False)
    assert isinstance(choose_backend(KernelChoice.AUTO, 1), ReferenceBackend)
    (record,) = caplog.records
    assert "four times the memory" in record.getMessage()
    with pytest.raises(InvalidRequest, match="not built"):
        choose_backend(KernelChoice.CPU, 1)
