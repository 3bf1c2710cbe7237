"""How weights are stored as small numbers: fp8 e4m3 with one scale per block of 128 x 128, both ways.

Numbers only. Knows no files, no tensor names, no layers; `experts/` decides which tensor has which format.
Source: DeepSeek-V3 README_WEIGHTS.md and inference/kernel.py (`weight_dequant`, `fp8_gemm` with `scale_fmt`).
"""

import numpy as np
import torch
from torch.nn.functional import pad

BLOCK = 128
"""Rows and columns that share a scale (`quantization_config.weight_block_size` of every published checkpoint)."""

E4M3_MAX = 448.0
"""The largest e4m3 value; a block's largest magnitude is scaled to it."""

E4M3_NAN = 0x7F
"""e4m3fn has no infinity, and one NaN per sign: 0x7f and 0xff."""

E8M0_BIAS = 127
"""A UE8M0 byte b is the scale 2^(b - 127); 255 is NaN."""

_MIN_SCALE = 2.0**-126
"""The smallest normal fp32: a block of tiny values gets it instead of a scale that would be 0."""

_E4M3_VALUES = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
"""The value of each byte. Looking bytes up takes a tenth of the time of torch's conversion (13 ms against 120 for
2048 x 7168 on one core), and no threads of OpenMP, which stall one another on busy cores."""


def num_blocks(size: int) -> int:
    """Blocks along a dimension of `size`; the last one may be ragged (V3's kv_a_proj: 576 -> 5)."""
    return -(-size // BLOCK)


def quantize_fp8_block(
    weight: torch.Tensor, *, is_scale_power_of_two: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Store a weight as e4m3 with block scales: scale = amax / 448, values rounded to nearest, ties to even.

    weight: f32|bf16[out, in], finite. Returns data: f8_e4m3fn[out, in] and scale: f32[ceil(out/128), ceil(in/128)],
    which multiplies (W = data * scale). Ragged blocks take the maximum of what they have. `is_scale_power_of_two`
    rounds scales up to powers of two (DeepSeek-V3.1's UE8M0): 2^ceil(log2(amax / 448)). A block of zeros has scale 1.
    Error: at most 1/16 of each normal value, 2^-10 * scale below.

    Raises:
        ValueError: not a matrix, or a value that is not finite.
    """
    if weight.ndim != 2 or not weight.isfinite().all():
        raise ValueError(f"a finite matrix is needed, not shape {tuple(weight.shape)} or values that are not finite")
    out_size, in_size = weight.shape
    rows, columns = num_blocks(out_size), num_blocks(in_size)
    blocks = pad(weight.float(), (0, columns * BLOCK - in_size, 0, rows * BLOCK - out_size))
    amax = blocks.view(rows, BLOCK, columns, BLOCK).abs().amax(dim=(1, 3))
    scale = torch.where(amax > 0, (amax / E4M3_MAX).clamp(min=_MIN_SCALE), 1.0)
    if is_scale_power_of_two:
        scale = _next_power_of_two(scale)
    scaled = (weight.float() / expand_scale(scale, out_size, in_size)).clamp(-E4M3_MAX, E4M3_MAX)
    return scaled.to(torch.float8_e4m3fn), scale


def dequantize_fp8_block(data: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """W = data * scale in fp32, the product correctly rounded (exact for scales that are powers of two).

    data: f8_e4m3fn[out, in] · scale: f32|f8_e8m0fnu|uint8[ceil(out/128), ceil(in/128)] (uint8: UE8M0 bytes).
    Returns f32[out, in]; NaN where data or scale are NaN. On the CPU.

    Raises:
        ValueError: dtypes or shapes that do not belong together.
    """
    if data.dtype is not torch.float8_e4m3fn or data.ndim != 2:
        raise ValueError(f"data is {data.dtype}{list(data.shape)}, not a matrix of float8_e4m3fn")
    expected = [num_blocks(size) for size in data.shape]
    if list(scale.shape) != expected:
        raise ValueError(f"scale has shape {list(scale.shape)}, data {list(data.shape)} needs {expected}")
    codes, scales = data.view(torch.uint8).numpy(), decode_scale(scale)
    values = np.empty(data.shape, dtype=np.float32)
    for i, first in enumerate(range(0, data.shape[0], BLOCK)):  # a row of blocks at a time, which a cache holds
        rows = values[first : first + BLOCK]
        np.take(_E4M3_VALUES, codes[first : first + BLOCK], out=rows, mode="clip")
        with np.errstate(all="ignore"):  # infinity and NaN are answers here
            rows *= expand_scale(scales[i : i + 1], 1, data.shape[1]).numpy()
    return torch.from_numpy(values)


def has_e4m3_nan(data: torch.Tensor) -> bool:
    """Whether a value of data: f8_e4m3fn[...] is NaN."""
    return bool(((data.view(torch.uint8) & E4M3_NAN) == E4M3_NAN).any())


def is_finite(values: torch.Tensor) -> bool:
    """Whether no value of values: f32[...], not empty, is NaN or infinite.

    By the extremes, which NaN passes through: 4 ms for 2048 x 7168 where `isfinite().all()` takes 80.
    """
    return all(bool(extreme.isfinite()) for extreme in values.aminmax())


def decode_scale(scale: torch.Tensor) -> torch.Tensor:
    """Block scales as fp32, exactly. scale: f32, or UE8M0 as f8_e8m0fnu or uint8 (byte b: 2^(b - 127), 255: NaN).

    Raises:
        ValueError: another dtype.
    """
    if scale.dtype is torch.float32:
        return scale
    if scale.dtype not in (torch.uint8, torch.float8_e8m0fnu):
        raise ValueError(f"scales of {scale.dtype}; float32, float8_e8m0fnu and uint8 are known")
    exponents = scale.view(torch.uint8).double() - E8M0_BIAS
    # through fp64, where 2^-127, a subnormal of fp32, is an ordinary number
    return torch.where(exponents == 128, torch.nan, exponents.exp2()).float()


def encode_e8m0(scale: torch.Tensor) -> torch.Tensor:
    """Scales that are powers of two as UE8M0. scale: f32, each 2^-127 .. 2^127. Returns f8_e8m0fnu, exactly.

    Raises:
        ValueError: a scale that is no power of two.
    """
    mantissa, exponent = torch.frexp(scale)
    if not bool((mantissa == 0.5).all()):
        raise ValueError("a scale that is not a power of two has no UE8M0 form")
    return (exponent - 1 + E8M0_BIAS).to(torch.uint8).view(torch.float8_e8m0fnu)


def expand_scale(scale: torch.Tensor, out_size: int, in_size: int) -> torch.Tensor:
    """Repeat block scales to one per element. scale: f32[blocks, blocks]. Returns f32[out, in]."""
    rows = scale.repeat_interleave(BLOCK, dim=0)[:out_size]
    return rows.repeat_interleave(BLOCK, dim=1)[:, :in_size]


def _next_power_of_two(scale: torch.Tensor) -> torch.Tensor:
    mantissa, exponent = torch.frexp(scale)  # scale = mantissa * 2^exponent, 0.5 <= mantissa < 1
    return torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).int())
