"""`int8` g128, `int4` g32 and g128: weights as integers with one scale per group of columns, both ways.

W[n, k] = code[n, k] * scale[n, k // group]. Numbers only; `experts/` decides which tensor has which format.

Layout, row-major as the checkpoint's `[out, in]`:

- int8: data i8[out, in], each -127..127 (never -128, so that |code| fits int8).
- int4: data u8[out, in / 2], codes 0..15 that stand for -8..7 (code - 8), packed as in `nibbles.py`.
- scale bf16[out, ceil(in / group)], one per row and `group` columns; a last group may be ragged. Never zero; for int4
  it may be negative.

**An int4 scale has at most five significant bits.** |code - 8| has at most three, so every dequantized weight has at
most eight: it is a bf16 number. A kernel may therefore build bf16 panels and run bf16 matrix instructions over any
group size, and weights are still dequantized exactly, as docs/adr/0004 asks. Finer scales would make the error smaller
by 0.4 % of itself for g128, 1 % for g32 (docs/adr/0007).
An int8 weight has up to 15 significant bits and is exact in fp32 only: kernels multiply codes, which bf16 holds, and
apply the scale to each group's fp32 sum.
"""

import torch

from shoal.kernels import cpu
from shoal.kernels.nibbles import pack_nibbles, unpack_nibbles
from shoal.kernels.scale_search import Grid, check_weight, quantize_groups, significant_bits_at_most

INT8_GROUP = 128
INT4_GROUPS = (32, 128)

INT4_SCALE_BITS = 5
"""Significant bits of an int4 scale: 5 + 3 of a code make bf16's 8."""

INT4_OFFSET = 8
"""Added to an integer to make its nibble."""

INT8_GRID = Grid(low=-127, high=127, scale_bits=8, num_steps=8)
"""Eight steps of bf16 reach down to 0.94-0.97 of absmax; 32 find no smaller error on gaussian weights (six digits)."""

INT4_GRID = Grid(low=-8, high=7, scale_bits=INT4_SCALE_BITS, num_steps=12, is_signed=True)
"""Twelve steps reach down to about 0.6 of absmax; 20 find no smaller error on gaussian weights (five digits)."""


def quantize_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Store a weight as int8 g128. weight: f32|bf16[out, in], finite. Returns data: i8[out, in] and its scales.

    Error on gaussian weights, relative L2: 0.0064 of the weights, 0.011 of an expert's output (absmax: 1 % more).

    Raises:
        ValueError: not a matrix, or values that are not finite or above 2^100.
    """
    return _quantize(weight, INT8_GROUP, INT8_GRID)


def quantize_int4(weight: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Store a weight as int4. weight: f32|bf16[out, in], `in` even, finite. group_size: 32 or 128.

    Returns data: u8[out, in / 2] and its scales. The same weight gives the same bytes on every machine.
    Error on gaussian weights, relative L2: g32 0.082 of the weights and 0.14 of an expert's output (absmax: 0.098 and
    0.17), g128 0.097 and 0.17 (absmax: 0.12 and 0.21).

    Raises:
        ValueError: not a matrix, an odd number of columns, another group size, or values that are not finite or above
            2^100.
    """
    _check_group(group_size)
    integers, scale = _quantize(weight, group_size, INT4_GRID)
    return pack_nibbles((integers + INT4_OFFSET).to(torch.uint8)), scale


def dequantize_int8(data: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """W = data * scale, exactly. data: i8[out, in] · scale: bf16[out, ceil(in / 128)]. Returns f32[out, in].

    Raises:
        ValueError: dtypes or shapes that do not belong together, or a code of -128.
    """
    if data.dtype is not torch.int8 or data.ndim != 2:
        raise ValueError(f"data is {data.dtype}{list(data.shape)}, not a matrix of int8")
    _check_scale(scale, data.shape[0], data.shape[1], INT8_GROUP)
    if bool((data == -128).any()):
        raise ValueError("a code of -128; int8 weights are -127..127")
    return data.float() * _expand(scale, INT8_GROUP, data.shape[1])


def dequantize_int4(data: torch.Tensor, scale: torch.Tensor, group_size: int) -> torch.Tensor:
    """W = (nibble - 8) * scale, exactly. data: u8[out, in / 2] · scale: bf16[out, ceil(in / group_size)].

    Returns f32[out, in], whose values are bf16 numbers.

    Raises:
        ValueError: dtypes or shapes that do not belong together, or a scale of more than five significant bits.
    """
    _check_group(group_size)
    if data.dtype is not torch.uint8 or data.ndim != 2:
        raise ValueError(f"data is {data.dtype}{list(data.shape)}, not a matrix of uint8")
    num_columns = 2 * data.shape[1]
    _check_scale(scale, data.shape[0], num_columns, group_size)
    if not significant_bits_at_most(scale, INT4_SCALE_BITS):
        raise ValueError(f"a scale of more than {INT4_SCALE_BITS} significant bits: its products are no bf16 numbers")
    return (unpack_nibbles(data).float() - INT4_OFFSET) * _expand(scale, group_size, num_columns)


def _quantize(weight: torch.Tensor, group_size: int, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    check_weight(weight)
    if cpu.is_available():
        codes, scales = cpu.quantize_groups(weight.float().contiguous(), group_size, grid)
    else:
        codes, scales = quantize_groups(weight, group_size, grid)
    return codes, scales.bfloat16()


def _expand(scale: torch.Tensor, group_size: int, num_columns: int) -> torch.Tensor:
    return scale.float().repeat_interleave(group_size, dim=1)[:, :num_columns]


def _check_group(group_size: int) -> None:
    if group_size not in INT4_GROUPS:
        raise ValueError(f"groups of {group_size}; int4 has groups of 32 or 128")


def _check_scale(scale: torch.Tensor, num_rows: int, num_columns: int, group_size: int) -> None:
    expected = [num_rows, -(-num_columns // group_size)]
    if scale.dtype is not torch.bfloat16:
        raise ValueError(f"scales of {scale.dtype}; integer formats have bfloat16")
    if list(scale.shape) != expected:
        raise ValueError(f"scale has shape {list(scale.shape)}, data of {num_columns} columns needs {expected}")
