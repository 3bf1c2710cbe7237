"""How weights of a format lie in device memory: what `programs.py` must know to read them. Knows no torch."""

from dataclasses import dataclass
from enum import StrEnum


class Codes(StrEnum):
    """How one weight is written; each is the layout of a module of `kernels/`."""

    E4M3 = "e4m3"
    """`formats.py`: one byte, scales f32 per 128 x 128"""
    BF16 = "bf16"
    F32 = "f32"
    INT8 = "int8"
    """`int_groups.py`: one byte, scales bf16 per row and group"""
    INT4 = "int4"
    """`int_groups.py`: a nibble, scales bf16 of five significant bits per row and group"""
    E2M1 = "e2m1"
    """`mxfp4.py`: a nibble, scales UE8M0 bytes per row and group"""


@dataclass(frozen=True, slots=True)
class Layout:
    """Codes, and how many columns share a scale (0: no scales)."""

    codes: Codes
    group_size: int = 0

    @property
    def step(self) -> int:
        """Columns of a weight that a program takes at a time: whole groups, and bytes enough for wide loads.

        int8 and e4m3 need exactly one group of 128: their scales do not fit into a bf16 weight and are applied to each
        group's fp32 sum. Otherwise untuned.
        """
        return 64 if self.codes in (Codes.BF16, Codes.F32) else 128
