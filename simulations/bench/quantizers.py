"""What a weight format takes away: relative L2 of weights and of an expert's output, beside plain absmax.

Computed in fp32 and fp64 from dequantized weights, so the kernels' own rounding (docs/adr/0004) is not in it:
`kernel_errors.py` has that. Knows no model; the demonstration model's experts come from `perplexity.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear, pad, silu

from shoal.experts.specs import PROJECTIONS, ExpertSpec
from shoal.experts.weight_formats import STORED, expert_shapes
from shoal.kernels.mxfp4 import E2M1_VALUES, GROUP
from shoal.protocol.messages import WeightFormat

Expert = Mapping[str, Tensor]
"""Gate, up and down by name, f32[out, in]."""

RoundTrip = Callable[[Tensor], Tensor]
"""A weight to a format and back."""

V3 = ExpertSpec(hidden=7168, inter=2048)
"""Its gate is what the errors of weights are taken on."""

GAUSSIAN = ExpertSpec(hidden=2048, inter=1024)
"""For output errors in fp64: large enough that they are a V3 expert's to two digits."""

NUM_ROWS = 64
SEED = 1


def round_trip(weight: Tensor, weight_format: WeightFormat) -> Tensor:
    """What is left of f32[out, in] after it was stored in a format."""
    stored = STORED[weight_format]
    data, scale = stored.quantize(weight)
    return data.float() if stored.dequantize is None or scale is None else stored.dequantize(data, scale)


def absmax(weight: Tensor, group_size: int, high: int) -> Tensor:
    """Integers -high..high with scale amax / high in fp32, a last group ragged: a baseline, stored nowhere."""
    groups = _groups(weight, group_size)
    scale = (groups.abs().amax(dim=1, keepdim=True) / high).clamp(min=2.0**-100)
    return _matrix((groups / scale).round() * scale, weight)


def absmax_mxfp4(weight: Tensor) -> Tensor:
    """E2M1 with the specification's scale, 2^(floor(log2(amax)) - 2), values above 6 saturating (OCP MX 1.0 §6.3).

    A baseline, stored nowhere; a tie goes to the smaller value instead of the even one.
    """
    groups = _groups(weight, GROUP)
    exponent = torch.frexp(groups.abs().amax(dim=1, keepdim=True).clamp(min=2.0**-100))[1] - 3
    values = torch.tensor(E2M1_VALUES)
    unit = torch.ldexp(groups, -exponent)
    nearest = values[torch.bucketize(unit.abs(), (values[1:] + values[:-1]) / 2)]
    return _matrix(torch.ldexp(nearest.copysign(unit), exponent), weight)


BASELINES: Mapping[WeightFormat, RoundTrip] = {
    WeightFormat.INT8_G128: partial(absmax, group_size=128, high=127),
    WeightFormat.INT4_G32: partial(absmax, group_size=32, high=7),
    WeightFormat.INT4_G128: partial(absmax, group_size=128, high=7),
    WeightFormat.MXFP4: absmax_mxfp4,
}
"""The plain quantizations that the searches must beat. fp8_block's own scale is amax / 448; bf16 and f32 have none."""


def weight_error(weights: Sequence[Tensor], convert: RoundTrip) -> float:
    """Relative L2 of all the weights together when they are converted."""
    lost = sum(float((convert(weight) - weight).double().square().sum()) for weight in weights)
    return float((lost / sum(float(weight.double().square().sum()) for weight in weights)) ** 0.5)


def output_error(expert: Expert, convert: RoundTrip) -> float:
    """Relative L2 of an expert's output in fp64, over gaussian rows, when its weights are converted."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(NUM_ROWS, expert["gate"].shape[1], generator=generator, dtype=torch.float64)
    converted, exact = (output(weights, x) for weights in ({n: convert(w) for n, w in expert.items()}, expert))
    return float((converted - exact).norm() / exact.norm())


def output(expert: Expert, x: Tensor) -> Tensor:
    """f64[T, H] of x: f64[T, H], without any rounding."""
    gate, up, down = (expert[name].double() for name in PROJECTIONS)
    return linear(silu(linear(x, gate)) * linear(x, up), down)


def gaussian_expert(spec: ExpertSpec) -> Expert:
    """Columns of variance 1 / in; always the same."""
    generator = torch.Generator().manual_seed(SEED)
    return {n: torch.randn(s, generator=generator) * s[1] ** -0.5 for n, s in expert_shapes(spec).items()}


def quantizer_errors(weight_format: WeightFormat, demo: Sequence[Expert]) -> dict[str, float | None]:
    """One row of the table; `demo`: experts of the demonstration model. None: the format has no baseline."""
    row: dict[str, float | None] = dict(_errors("", partial(round_trip, weight_format=weight_format), demo))
    baseline = BASELINES.get(weight_format)
    if baseline is None:
        return row | dict.fromkeys((f"{name}_absmax" for name in row), None)
    return row | dict(_errors("_absmax", baseline, demo))


def _errors(suffix: str, convert: RoundTrip, demo: Sequence[Expert]) -> dict[str, float]:
    demo_weights = [weight for expert in demo for weight in expert.values()]
    errors = {
        "v3_weights": weight_error([_v3_gate()], convert),
        "demo_weights": weight_error(demo_weights, convert),
        "gaussian_output": output_error(gaussian_expert(GAUSSIAN), convert),
        "demo_output": sum(output_error(expert, convert) for expert in demo) / len(demo),
    }
    return {f"{name}{suffix}": float(f"{error:.3g}") for name, error in errors.items()}


def _v3_gate() -> Tensor:
    return torch.randn(expert_shapes(V3)["gate"], generator=torch.Generator().manual_seed(SEED))


def _groups(weight: Tensor, group_size: int) -> Tensor:
    """f32[groups, group_size], every row padded with zeros to whole groups."""
    return pad(weight, (0, -weight.shape[1] % group_size)).view(-1, group_size)


def _matrix(groups: Tensor, weight: Tensor) -> Tensor:
    """Undo `_groups`."""
    return groups.view(weight.shape[0], -1)[:, : weight.shape[1]]
