"""How far every path through the kernels is from fp64 on the very weights it was given, and from the other paths.

Rounding 1, one expert of DeepSeek-V3's shape. Promised are 5e-3 (relative L2) to fp64 and between paths: honest holders
on different machines may differ by no more (docs/adr/0004).
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from shoal.experts.backend import ExpertBackend, ExpertWeights
from shoal.experts.cpu_backend import CpuBackend
from shoal.experts.reference_backend import ReferenceBackend
from shoal.experts.specs import ExpertSpec
from shoal.experts.weight_formats import dequantize_expert, quantize_expert
from shoal.kernels import cpu
from shoal.protocol.messages import Rounding, WeightFormat
from shoal.simulations.bench.quantizers import V3, gaussian_expert, output

BOUND = 5e-3

TOKENS = (1, 3, 8, 17)
"""Rows of a call: a single one, few, a block, and a ragged one; kernels take different ways for them."""

Paths = dict[str, ExpertBackend]


def paths(threads: int) -> Paths:
    """Every way through the kernels that this processor has, torch's reference first."""
    isas = cpu.available_isas() if cpu.is_available() else ()
    return {"reference": ReferenceBackend()} | {str(isa): CpuBackend(cpu.CpuKernels(threads, isa)) for isa in isas}


def kernel_errors(
    weight_format: WeightFormat, backends: Paths, spec: ExpertSpec = V3, tokens: Sequence[int] = TOKENS
) -> dict[str, object]:
    """The largest error of every path over `tokens`, and the largest difference between two paths."""
    stored = quantize_expert(gaussian_expert(spec), weight_format, "gaussian")
    x = torch.randn(max(tokens), spec.hidden, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = output(dequantize_expert(spec, stored), x.double())
    answers = {name: _answers(backend, spec, stored, x, tokens) for name, backend in backends.items()}
    pairs = [distance(*two) for of in range(len(tokens)) for two in combinations([a[of] for a in answers.values()], 2)]
    return {
        "errors": {
            name: _rounded(max(distance(answer, exact[: len(answer)]) for answer in each))
            for name, each in answers.items()
        },
        "spread": _rounded(max(pairs, default=0.0)),
    }


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Relative L2."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def _answers(
    backend: ExpertBackend, spec: ExpertSpec, stored: ExpertWeights, x: Tensor, tokens: Sequence[int]
) -> list[Tensor]:
    packed = backend.pack(spec, stored)
    return [
        backend.run([packed], x[:count], torch.arange(count), (0, count), torch.ones(count), Rounding.BF16)
        for count in tokens
    ]


def _rounded(error: float) -> float:
    return float(f"{error:.3g}")
