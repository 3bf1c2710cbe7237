"""How the trunk multiplies: a linear map, and the per-head maps of attention, on torch's or on the C++ kernels.

Dense maps hold a torch tensor in the dtype of the arithmetic. Packed ones hold the weight in its stored format (fp8 at
one byte a weight, int4 at half of one) and decode it on the way through the processor, exactly. Whether a packed map
rounds is the input's word: bf16 rows are multiplied as rounding 1 says (docs/adr/0004: exact weights, bf16 inputs, fp32
sums) and the result becomes bf16; fp32 rows as rounding 0, fp32 throughout. Knows no names and no files
(`linear_maker.py`), and not what the maps are for.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from shoal.kernels.cpu import CpuKernels, PackedMatrix


class Linear(Protocol):
    """x W^T + bias."""

    @property
    def resident_bytes(self) -> int:
        """Memory that it holds, in bytes."""

    def __call__(self, x: Tensor) -> Tensor:
        """x: dtype[T, in] -> dtype[T, out]"""


class HeadMaps(Protocol):
    """One linear map per attention head."""

    @property
    def resident_bytes(self) -> int:
        """Memory that they hold, in bytes."""

    def __call__(self, x: Tensor) -> Tensor:
        """x: dtype[heads, T, in] -> dtype[heads, T, out]"""


@dataclass(frozen=True, slots=True)
class DenseLinear(Linear):
    """A map in torch. weight: dtype[out, in], bias: dtype[out] or None."""

    weight: Tensor
    bias: Tensor | None = None

    @property
    def resident_bytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class DenseHeadMaps(HeadMaps):
    """Maps in torch. weight: dtype[heads, in, out], contiguous: a view costs bf16 12 ms in place of 0.5."""

    weight: Tensor

    @property
    def resident_bytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return torch.bmm(x, self.weight)


@dataclass(frozen=True, slots=True)
class PackedLinear(Linear):
    """A map on the C++ kernels. bias: f32[out] or None, added before the result is rounded to x's dtype."""

    kernels: CpuKernels
    matrix: PackedMatrix
    bias: Tensor | None = None

    @property
    def resident_bytes(self) -> int:
        return self.matrix.size_bytes + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        is_rounded, x = x.dtype is torch.bfloat16, x.contiguous()
        if self.bias is None:
            return self.kernels.linear(self.matrix, x, is_rounded=is_rounded, dtype=x.dtype)
        return (self.kernels.linear(self.matrix, x, is_rounded=is_rounded) + self.bias).to(x.dtype)


@dataclass(frozen=True, slots=True)
class PackedHeadMaps(HeadMaps):
    """Maps on the C++ kernels: those of all heads below one another in one matrix, each padded with rows of zeros."""

    kernels: CpuKernels
    matrix: PackedMatrix
    out_width: int
    """Rows of each head that are no padding."""

    @property
    def resident_bytes(self) -> int:
        return self.matrix.size_bytes

    def __call__(self, x: Tensor) -> Tensor:
        y = self.kernels.grouped_linear(self.matrix, x, is_rounded=x.dtype is torch.bfloat16, dtype=x.dtype)
        return y[..., : self.out_width]
