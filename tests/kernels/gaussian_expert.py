"""A gaussian expert, and how far its output moves when its weights do."""

import torch
from torch.nn.functional import linear, silu

Weights = dict[str, torch.Tensor]


def gaussian_expert(hidden: int = 1024, inter: int = 512, seed: int = 0) -> Weights:
    """Gate, up and down with variance 1 / in, as after common initialisations."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"gate": (inter, hidden), "up": (inter, hidden), "down": (hidden, inter)}
    return {name: torch.randn(shape, generator=generator) * shape[1] ** -0.5 for name, shape in shapes.items()}


def output(weights: Weights, num_rows: int = 64) -> torch.Tensor:
    """fp64 output for fixed gaussian rows."""
    gate, up, down = (weights[name].double() for name in ("gate", "up", "down"))
    x = torch.randn(num_rows, gate.shape[1], generator=torch.Generator().manual_seed(99)).double()
    return linear(silu(linear(x, gate)) * linear(x, up), down)


def absmax(weight: torch.Tensor, group_size: int, high: int) -> torch.Tensor:
    """The plain baseline, with fp32 scales: integers -high..high, scale amax / high."""
    groups = weight.reshape(-1, group_size)
    scale = groups.abs().amax(dim=1, keepdim=True) / high
    return ((groups / scale).round() * scale).view(weight.shape)


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2 error."""
    return float((value.double() - expected.double()).norm() / expected.double().norm())
