"""Formats of hidden states on the wire: their numbers, and how many bytes a row takes (PROTOCOL.md §6.14).

Knows sizes only; the numbers themselves are `tensors.py`'s.
"""

from collections.abc import Iterable
from enum import IntEnum

BLOCK = 128
"""Values that share a scale: DeepSeek-V3's tile of activations (arXiv 2412.19437 §3.3.2)."""


class DType(IntEnum):
    """How a row of hidden states is written."""

    F32 = 1
    BF16 = 2
    FP8 = 3
    """e4m3 values, then a power of two (UE8M0) for every block."""
    INT8 = 4
    """Signed bytes, then a bf16 scale for every block."""

    @property
    def size_bytes(self) -> int:
        """Of one value, without scales."""
        return _VALUE_BYTES[self]


_VALUE_BYTES: dict[int, int] = {DType.F32: 4, DType.BF16: 2, DType.FP8: 1, DType.INT8: 1}
_SCALE_BYTES: dict[int, int] = {DType.F32: 0, DType.BF16: 0, DType.FP8: 1, DType.INT8: 2}

EXACT = frozenset({DType.F32, DType.BF16})
"""What every peer takes in a DISPATCH, as its rounding says, without a word about it."""

TAKEN = frozenset(DType)
"""What this program takes and gives."""


def num_blocks(hidden: int) -> int:
    """Scales of a row; the last block may be short."""
    return -(-hidden // BLOCK)


def row_bytes(dtype: int, hidden: int) -> int:
    """Bytes of one row of `hidden` values, scales included."""
    return hidden * _VALUE_BYTES[dtype] + num_blocks(hidden) * _SCALE_BYTES[dtype]


def to_bits(dtypes: Iterable[DType]) -> int:
    """A set as WELCOME has it: bit d is set if format d is in it."""
    return sum(1 << dtype for dtype in dtypes)


def from_bits(bits: int) -> frozenset[DType]:
    """The formats that we know of a set; others are a newer peer's and no concern of ours."""
    return frozenset(dtype for dtype in DType if bits >> dtype & 1)
