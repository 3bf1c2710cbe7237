"""The back end for ordinary computers: the C++ kernels of `kernels/cpu.py`, weights kept in their stored format.

Memory: a published fp8 expert stays at one byte a weight (DeepSeek-V3: 44 MB, a quarter of the reference back end's).
Knows experts and rows; knows no peers and no files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from shoal.experts.backend import ExpertBackend, ExpertWeights, PackedExpert, QuantizedWeight
from shoal.experts.family import ExpertSpec
from shoal.experts.row_checks import check_plain
from shoal.experts.weight_formats import checked_biases
from shoal.kernels.cpu import DATA_DTYPES, CpuKernels, Format, PackedMatrix, PackedSwiGLU, bias_bytes, packed_bytes
from shoal.kernels.formats import decode_scale
from shoal.protocol.errors import CheckpointError, InvalidRequest
from shoal.protocol.messages import Rounding, WeightFormat


@dataclass(frozen=True, slots=True)
class CpuExpert:
    """An expert as this back end keeps it."""

    spec: ExpertSpec
    weights: PackedSwiGLU

    @property
    def resident_bytes(self) -> int:
        """Bytes of memory that the three matrices, their scales and their biases hold."""
        return self.weights.size_bytes


class CpuBackend(ExpertBackend):
    """`ExpertBackend` in C++. Formats: all of `WeightFormat`."""

    def __init__(self, kernels: CpuKernels) -> None:
        self._kernels = kernels

    @property
    def name(self) -> str:
        return f"cpu ({self._kernels.isa}, threads: {self._kernels.threads})"

    @property
    def kernel_class(self) -> int:
        return 1

    @property
    def is_row_exact(self) -> bool:
        return True  # sums are made in one order whatever the batch (ADR 0006)

    def resident_bytes(self, spec: ExpertSpec, weight_format: WeightFormat) -> int:
        """Memory that one packed expert will take, in bytes: as stored, padded to 64 rows and 128 columns."""
        wide = packed_bytes(Format(weight_format), spec.inter, spec.hidden)
        biases = bias_bytes(spec.inter, spec.hidden) if spec.has_biases else 0
        return 2 * wide + packed_bytes(Format(weight_format), spec.hidden, spec.inter) + biases

    def free_bytes(self) -> int:
        """Free main memory."""
        return int(psutil.virtual_memory().available)

    def pack(self, spec: ExpertSpec, weights: ExpertWeights) -> CpuExpert:
        weight_format, wide, tall = Format(weights.format), (spec.inter, spec.hidden), (spec.hidden, spec.inter)
        packed = [
            pack_matrix(weight, weight_format, shape, weights.origin, projection)
            for projection, weight, shape in (
                ("gate", weights.gate, wide), ("up", weights.up, wide), ("down", weights.down, tall),
            )
        ]  # fmt: skip
        gate, up, down = packed
        return CpuExpert(spec, PackedSwiGLU(gate, up, down, spec.activation, checked_biases(spec, weights)))

    def run(
        self,
        experts: Sequence[PackedExpert],
        x: torch.Tensor,
        row_idx: torch.Tensor,
        offsets: Sequence[int],
        topk_weights: torch.Tensor,
        rounding: Rounding,
    ) -> torch.Tensor:
        packed = [_own(expert) for expert in experts]
        check_plain(x, row_idx, topk_weights)
        is_rounded = Rounding(rounding) is Rounding.BF16
        try:
            return self._kernels.grouped_swiglu(packed, x, row_idx, offsets, topk_weights, is_rounded=is_rounded)
        except (ValueError, TypeError) as error:
            raise InvalidRequest(str(error)) from error


def pack_matrix(
    weight: QuantizedWeight, weight_format: Format, shape: tuple[int, int], origin: str, name: str
) -> PackedMatrix:
    """One weight `[out, in]` in the layout of the C++ kernels; `origin` and `name` are what errors call it.

    Raises:
        CheckpointError: dtypes or shapes that are not the format's, or a value that is not finite.
    """
    data, expected = weight.data, DATA_DTYPES[weight_format]
    if data.dtype is not expected:
        raise CheckpointError(origin, name, f"{data.dtype}, {weight_format.name} means {expected}")
    try:
        scale = None if weight.scale is None else _as_packed(weight.scale, weight_format)
        return PackedMatrix(weight_format, *shape, data.contiguous(), scale)
    except ValueError as error:
        raise CheckpointError(origin, name, str(error)) from error


def _as_packed(scale: torch.Tensor, weight_format: Format) -> torch.Tensor:
    """Scales in the dtype that the kernels take, exactly: UE8M0 block scales are powers of two in fp32."""
    if weight_format is Format.FP8_BLOCK:
        return decode_scale(scale).contiguous()
    is_e8m0 = scale.dtype is torch.float8_e8m0fnu
    return (scale.view(torch.uint8) if is_e8m0 else scale).contiguous()


def _own(expert: PackedExpert) -> PackedSwiGLU:
    if not isinstance(expert, CpuExpert):
        raise InvalidRequest(f"an expert packed by another back end: {type(expert).__name__}")
    return expert.weights
