"""Calls with odd shapes that the CUDA back end and the reference answer alike, for interpreted and real devices."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from shoal.experts.backend import ExpertBackend, PackedExpert
from shoal.experts.family import ExpertSpec
from shoal.experts.reference_backend import ReferenceBackend
from shoal.experts.weight_formats import expert_shapes, quantize_expert
from shoal.kernels.activation import DEEPSEEK_V4, GPT_OSS
from shoal.kernels.reference import Biases
from shoal.protocol.messages import Rounding, WeightFormat

Bound = Mapping[Rounding, float]
"""Relative L2 against the reference."""

GROUPS = (0, 1, 3, 17, 257)
SPEC = ExpertSpec(hidden=136, inter=72)
"""No width is a multiple of a tile, nor of a group of 128 or 32."""

VARIANTS = (
    replace(SPEC, activation=GPT_OSS, has_biases=True),
    replace(SPEC, activation=DEEPSEEK_V4),
    replace(SPEC, has_biases=True),
)

LOUD = 8.0
"""Rows of clamped experts are so much larger that gates of a standard deviation of 8 meet limits of 7 and 10."""


def pack(backend: ExpertBackend, spec: ExpertSpec, weight_format: WeightFormat, num_experts: int) -> list[PackedExpert]:
    packed = []
    for seed in range(num_experts):
        generator = torch.Generator().manual_seed(seed)
        matrices = {
            name: torch.randn(shape, generator=generator) * shape[1] ** -0.5
            for name, shape in expert_shapes(spec).items()
        }
        shapes = expert_shapes(spec).values()
        biases = Biases(*(torch.randn(rows, generator=generator) for rows, _ in shapes)) if spec.has_biases else None
        packed.append(backend.pack(spec, quantize_expert(matrices, weight_format, "a test", biases)))
    return packed


def make_call(spec: ExpertSpec, groups: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, list[int], torch.Tensor]:
    """x, row_idx, offsets, topk_weights for ragged groups over as many rows as the largest has, plus one unnamed."""
    generator = torch.Generator().manual_seed(7)
    num_rows = max(groups) + 1
    loudness = 1.0 if spec.activation.limit == math.inf else LOUD
    x = (loudness * torch.randn(num_rows, spec.hidden, generator=generator)).bfloat16()
    row_idx = torch.cat([torch.randperm(num_rows - 1, generator=generator)[:size].sort()[0] for size in groups])
    offsets = [0, *torch.tensor(groups).cumsum(0).tolist()]
    return x, row_idx, offsets, torch.rand(len(row_idx), generator=generator) + 0.1


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value.double() - expected.double()).norm() / expected.double().norm())


def compare(
    ours: ExpertBackend, spec: ExpertSpec, weight_format: WeightFormat, rounding: Rounding, bound: Bound
) -> None:
    groups = GROUPS if weight_format is WeightFormat.FP8_BLOCK else GROUPS[:-1]
    arguments = make_call(spec, groups)
    reference = ReferenceBackend()
    answers = [
        backend.run(pack(backend, spec, weight_format, len(groups)), *arguments, rounding)  # type: ignore[arg-type]
        for backend in (ours, reference)
    ]
    assert (answers[0].dtype, answers[0].shape) == (torch.float32, answers[1].shape)
    assert relative(*answers) <= bound[rounding]
    assert torch.equal(answers[0][-1], torch.zeros(spec.hidden)), "a row that no pair names"
