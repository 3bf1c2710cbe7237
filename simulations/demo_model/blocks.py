"""The fp8 block grid: DeepSeek's e4m3 weights with one power-of-two scale per 128x128 block.

Used twice: while training ends, to round weights onto the grid (so that nothing is lost at export), and at export
itself. It knows nothing of layers or files. Formats: DeepSeek-V3 README_WEIGHTS; power-of-two scales: V3.1's
`"scale_fmt": "ue8m0"` (a power of two commutes with bf16 rounding, so dequantizing to bf16 is exact).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 128
"""Block edge, from `quantization_config.weight_block_size`."""

E4M3_MAX = 448.0
"""Largest finite e4m3 value."""

SMALLEST_AMAX = 1e-4
"""Blocks quieter than this share its scale: an all-zero block must not divide by zero (DeepSeek's kernel.py clamp)."""


def block_scales(weight: Tensor) -> Tensor:
    """`weight: [..., O, I]` -> fp32 `[..., ceil(O/128), ceil(I/128)]`: powers of two with `amax / scale <= 448`."""
    rows, columns = weight.shape[-2:]
    padded = F.pad(weight.detach().float(), (0, -columns % BLOCK, 0, -rows % BLOCK))
    height, width = padded.shape[-2] // BLOCK, padded.shape[-1] // BLOCK
    amax = padded.view(*weight.shape[:-2], height, BLOCK, width, BLOCK).abs().amax(dim=(-3, -1))
    return torch.exp2(torch.ceil(torch.log2(amax.clamp(min=SMALLEST_AMAX) / E4M3_MAX)))


def spread(scales: Tensor, rows: int, columns: int) -> Tensor:
    """Repeat each block's scale over its block: `[..., ceil(O/128), ceil(I/128)] -> [..., O, I]`."""
    wide = scales.repeat_interleave(BLOCK, dim=-1)[..., :columns]
    return wide.repeat_interleave(BLOCK, dim=-2)[..., :rows, :]


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`weight: [..., O, I]` -> (e4m3 of the same shape, fp32 block scales); `dequantize` inverts it up to rounding."""
    scales = block_scales(weight)
    return (weight.detach().float() / spread(scales, *weight.shape[-2:])).to(torch.float8_e4m3fn), scales


def dequantize(quantized: Tensor, scales: Tensor) -> Tensor:
    """e4m3 `[..., O, I]` and its block scales -> fp32, exactly `value * scale`."""
    return quantized.float() * spread(scales, *quantized.shape[-2:])


def round_through(weight: Tensor) -> Tensor:
    """Round onto the grid in the forward pass; gradients pass as if nothing happened (straight-through estimator)."""
    return weight + (dequantize(*quantize(weight)) - weight).detach()
