"""In which format hidden states go to a holder and its partial sums come back (docs/adr/0029). A pure choice.

Exact unless the user or, with `auto`, the measured link says otherwise; and never a format that the holder has not
named.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from shoal.protocol.dtypes import row_bytes
from shoal.protocol.messages import DType, Rounding

MAX_TOKEN_S = 0.001
"""What one token's bytes may cost on a link before fewer are sent; 58 ms for DeepSeek-V3's 58 layers."""


class Activations(StrEnum):
    """What the user wants."""

    EXACT = "exact"
    """The bits of the trunk and of the kernels."""
    BF16 = "bf16"
    FP8 = "fp8"
    INT8 = "int8"
    AUTO = "auto"
    """By the link to each holder."""


@dataclass(frozen=True, slots=True)
class WireFormat:
    """Both ways of an exchange."""

    up: DType
    down: DType

    def token_bytes(self, hidden: int) -> int:
        """Hidden states of one token there, its partial sum back."""
        return row_bytes(self.up, hidden) + row_bytes(self.down, hidden)


_BOTH_WAYS = {Activations.BF16: DType.BF16, Activations.FP8: DType.FP8, Activations.INT8: DType.INT8}

AUTO_ORDER = (DType.BF16, DType.INT8)
"""After the exact one, the most exact first. fp8 has int8's size and four times its error (docs/PERFORMANCE.md)."""


def exact_format(rounding: Rounding) -> WireFormat:
    """What loses nothing: the kernels' own inputs, and fp32 sums."""
    return WireFormat(DType.BF16 if rounding is Rounding.BF16 else DType.F32, DType.F32)


def wire_format(
    wanted: Activations, rounding: Rounding, hidden: int, taken: Collection[DType], bytes_per_s: float | None
) -> WireFormat:
    """The format for one holder. taken: what it has named; bytes_per_s: its link, None: not measured.

    `auto` is the first of exact, bf16 and int8 whose bytes of one token, there and back, take at most a millisecond on
    the holder's link, or else the last of these that the holder takes; exact until the link is measured.
    """
    exact = exact_format(rounding)
    if wanted is Activations.EXACT:
        return exact
    if wanted is not Activations.AUTO:
        dtype = _BOTH_WAYS[wanted]
        return WireFormat(dtype, dtype) if dtype in taken else exact
    if bytes_per_s is None:
        return exact
    ladder = [exact, *(WireFormat(dtype, dtype) for dtype in AUTO_ORDER if dtype in taken)]
    fitting = (each for each in ladder if each.token_bytes(hidden) <= MAX_TOKEN_S * bytes_per_s)
    return next(fitting, ladder[-1])
