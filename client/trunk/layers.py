"""Two layers that everything else is made of besides linear maps (`linear.py`): RMS norm and SwiGLU.

Knows weights; knows neither where they come from (`checkpoint.py`) nor in which order they run.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from shoal.client.trunk.linear import Linear


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """Root-mean-square norm (arXiv 1910.07467): the mean in fp32, the gain in x's dtype, as transformers has it."""

    weight: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        normed = F.rms_norm(x.to(torch.float32), self.weight.shape, eps=self.epsilon)
        return self.weight * normed.to(x.dtype)


@dataclass(frozen=True, slots=True)
class Mlp:
    """SwiGLU feed-forward (arXiv 2002.05202): a dense layer's, or the shared expert's."""

    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear

    def __call__(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
