"""Where a token stands: rotary position embedding with YaRN, bit for bit as transformers computes it.

Turns positions into the cos and sin that attention rotates queries and keys by; once per forward pass, for all
layers. Knows no heads and no cache. Formulas: YaRN, arXiv 2309.00071 §3; DeepSeek-V3 `inference/model.py`;
transformers `modeling_rope_utils.py`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.client.trunk.config import ModelConfig, RopeConfig, YarnConfig


@dataclass(frozen=True, slots=True)
class Rotation:
    """cos and sin of every pair's angle at some positions: dtype[T, 1, R/2] (the 1 is for the heads)."""

    cos: Tensor
    sin: Tensor
    is_interleaved: bool

    def apply(self, x: Tensor) -> Tensor:
        """Rotate x: dtype[T, heads, R]. First members of all pairs come out first: queries and keys agree on that."""
        first, second = (x[..., 0::2], x[..., 1::2]) if self.is_interleaved else x.chunk(2, dim=-1)
        return torch.cat((first * self.cos - second * self.sin, second * self.cos + first * self.sin), dim=-1)


class RotaryEmbedding:
    """Angles for every position of the context."""

    def __init__(self, config: ModelConfig) -> None:
        self._is_interleaved = config.rope.is_interleaved
        self._frequencies = frequencies(config.rope, config.qk_rope_head_dim)  # [R/2]
        self._magnitude = magnitude(config.rope.yarn)

    def at(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """positions: i64[T] -> the rotation to them."""
        angles = positions[:, None, None].float() * self._frequencies  # [T, 1, R/2]
        cos, sin = angles.cos() * self._magnitude, angles.sin() * self._magnitude
        return Rotation(cos.to(dtype), sin.to(dtype), self._is_interleaved)


def frequencies(rope: RopeConfig, width: int) -> Tensor:
    """Angle per position of each pair: f32[R/2], fast pairs first."""
    wavelengths = rope.theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    if rope.yarn is None:
        return 1.0 / wavelengths
    kept = _kept_part(rope.yarn, rope.theta, width)
    return 1.0 / (rope.yarn.factor * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept


def _kept_part(yarn: YarnConfig, theta: float, width: int) -> Tensor:
    """How much of its speed each pair keeps: 1 for those that turn often in the original context, 0 for slow ones."""

    def pair_turning(num_turns: float) -> float:
        return (
            width * math.log(yarn.original_max_position_embeddings / (num_turns * 2 * math.pi)) / (2 * math.log(theta))
        )

    low, high = pair_turning(yarn.beta_fast), pair_turning(yarn.beta_slow)
    if yarn.is_truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    span = high - low or 0.001  # as transformers: no division by zero
    return 1 - ((torch.arange(width // 2, dtype=torch.float32) - low) / span).clamp(0, 1)


def magnitude(yarn: YarnConfig | None) -> float:
    """What cos and sin are multiplied by (transformers' `attention_factor`); 1 for DeepSeek-V3's equal mscales."""
    if yarn is None:
        return 1.0
    if yarn.attention_factor is not None:
        return yarn.attention_factor
    if yarn.mscale and yarn.mscale_all_dim:
        return _mscale(yarn.factor, yarn.mscale) / _mscale(yarn.factor, yarn.mscale_all_dim)
    return _mscale(yarn.factor, 1.0)


def softmax_scale(config: ModelConfig) -> float:
    """qk_head_dim^-0.5, times mscale_all_dim's factor squared under YaRN (DeepSeek-V3 `MLA.__init__`)."""
    scale = float(config.qk_head_dim**-0.5)
    yarn = config.rope.yarn
    return scale * _mscale(yarn.factor, yarn.mscale_all_dim) ** 2 if yarn and yarn.mscale_all_dim else scale


def _mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0
