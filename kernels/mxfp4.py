"""`mxfp4`: 4-bit floats (E2M1) with one power of two (UE8M0) per 32 columns, both ways.

Source: OCP Microscaling Formats (MX) Specification 1.0, §5.3.3 (E2M1), §5.4.1 (E8M0), §6.3 (conversion). gpt-oss ships
it; DeepSeek-V4 ships the same numbers (model-and-kernels notes of its checkpoint say [1, 32] scales).

Layout, row-major as the checkpoint's `[out, in]`: data u8[out, in / 2], packed as in `nibbles.py`; a code is sign (8),
exponent (6) and mantissa (1): 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives. scale f8_e8m0fnu (or its bytes as
u8)[out, ceil(in / 32)]: byte b is 2^(b - 127), 255 is NaN. A last group may be ragged. W = value(code) * scale has two
significant bits: it is a bf16 number.
"""

import torch

from shoal.kernels.formats import decode_scale, encode_e8m0
from shoal.kernels.nibbles import pack_nibbles, unpack_nibbles
from shoal.kernels.scale_search import CHUNK_VALUES, as_matrix, check_weight, in_groups

GROUP = 32

E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Values of codes 0..7; codes 8..15 are their negatives."""

_E2M1_MAX_EXPONENT = 2
"""6 = 1.5 * 2^2."""

_EXPONENT_OFFSETS = (0, 1, -1)
"""Tried around the specification's exponent; on a tie the earlier one stays."""

_MIDPOINTS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
"""Between neighbouring values. On a tie the even code wins (§6.3: roundTiesToEven): that is the upper one of a midpoint
at an odd index."""


def quantize_mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Store a weight as mxfp4. weight: f32|bf16[out, in], `in` even, finite. Returns data: u8[out, in / 2] and scale:
    f8_e8m0fnu[out, ceil(in / 32)]. The same weight gives the same bytes on every machine.

    The specification's exponent, floor(log2(amax)) - 2, saturates up to a quarter of a group's extreme; its neighbours
    are tried as well and the smallest squared error wins.
    Error on gaussian weights, relative L2: 0.112 of the weights, 0.195 of an expert's output
    (specification: 0.115, 0.20).

    Raises:
        ValueError: not a matrix, an odd number of columns, or values that are not finite or above 2^100.
    """
    check_weight(weight)
    codes, exponents = [], []
    for part in torch.split(in_groups(weight, GROUP), CHUNK_VALUES // GROUP, dim=1):
        exponent = _choose_exponent(part)
        exponents.append(exponent)
        codes.append(_to_codes(torch.ldexp(part, -exponent)))
    exponent = torch.cat(exponents)
    scale = torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent).view(weight.shape[0], -1)
    return pack_nibbles(as_matrix(torch.cat(codes, dim=1), *weight.shape)), encode_e8m0(scale)


def dequantize_mxfp4(data: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """W = value(code) * 2^(b - 127), exactly. data: u8[out, in / 2] · scale: f8_e8m0fnu|u8[out, ceil(in / 32)].

    Returns f32[out, in]: bf16 numbers; NaN where a scale is NaN, infinite where 2^127 or 2^126 leave fp32's range.

    Raises:
        ValueError: dtypes or shapes that do not belong together.
    """
    if data.dtype is not torch.uint8 or data.ndim != 2:
        raise ValueError(f"data is {data.dtype}{list(data.shape)}, not a matrix of uint8")
    if scale.dtype not in (torch.uint8, torch.float8_e8m0fnu):
        raise ValueError(f"scales of {scale.dtype}; mxfp4 has float8_e8m0fnu or its bytes as uint8")
    num_columns = 2 * data.shape[1]
    expected = [data.shape[0], -(-num_columns // GROUP)]
    if list(scale.shape) != expected:
        raise ValueError(f"scale has shape {list(scale.shape)}, data of {num_columns} columns needs {expected}")
    values = _value_table()[unpack_nibbles(data).int()]
    return values * decode_scale(scale).repeat_interleave(GROUP, dim=1)[:, :num_columns]


def _value_table() -> torch.Tensor:
    positive = torch.tensor(E2M1_VALUES)
    return torch.cat([positive, -positive])


def _choose_exponent(groups: torch.Tensor) -> torch.Tensor:
    """groups: f32[GROUP, N]. Returns i32[N]; 0 for groups of zeros."""
    amax = groups.abs().amax(dim=0)
    base = torch.frexp(amax)[1] - 1 - _E2M1_MAX_EXPONENT  # frexp's mantissa is below 1
    table, best, best_error = _value_table(), base, torch.full_like(amax, torch.inf)
    for offset in _EXPONENT_OFFSETS:
        unit = torch.ldexp(groups, -base - offset)
        error = _sum(torch.square(table[_to_codes(unit).int()] - unit)) * 4.0**offset
        is_better = error < best_error
        best_error = torch.where(is_better, error, best_error)
        best = torch.where(is_better, base + offset, best)
    return torch.where(amax > 0, best, 0)


def _sum(squares: torch.Tensor) -> torch.Tensor:
    """Over the first dimension, in a fixed order (see `scale_search.py`)."""
    while len(squares) > 1:
        half = len(squares) // 2
        squares = squares[:half] + squares[half:]
    return squares[0]


def _to_codes(unit: torch.Tensor) -> torch.Tensor:
    """Nearest E2M1 codes, ties to even, saturating at 6. unit: f32[...]. Returns u8[...]."""
    size = unit.abs()
    codes = torch.zeros_like(size, dtype=torch.uint8)
    for index, midpoint in enumerate(_MIDPOINTS):
        codes += (size >= midpoint) if index % 2 else (size > midpoint)
    return codes | (torch.signbit(unit).to(torch.uint8) << 3)
