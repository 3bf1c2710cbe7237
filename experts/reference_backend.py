"""The back end that is easy to read: weights dequantized to fp32 at load, arithmetic of `kernels/reference.py`.

Memory: fp32 costs 12 * hidden * inter bytes an expert (DeepSeek-V3: 176 MB), four times the published fp8 and twice
bf16. That is the price of never dequantizing in a call (164 ms for a V3 expert in eager torch; model-and-kernels §C);
the C++ and CUDA back ends keep the stored format. Knows experts and rows; knows no peers and no files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from shoal.experts.backend import ExpertBackend, ExpertWeights, PackedExpert, QuantizedWeight
from shoal.experts.family import ExpertSpec
from shoal.kernels import formats
from shoal.kernels.reference import SwiGLU, grouped_swiglu
from shoal.protocol.errors import CheckpointError, InvalidRequest
from shoal.protocol.messages import Rounding, WeightFormat

_FP32_BYTES = 4
_DATA_DTYPES = {
    WeightFormat.FP8_BLOCK: torch.float8_e4m3fn,
    WeightFormat.BF16: torch.bfloat16,
    WeightFormat.F32: torch.float32,
}


@dataclass(frozen=True, slots=True)
class ReferenceExpert:
    """An expert as this back end keeps it: three fp32 matrices."""

    spec: ExpertSpec
    weights: SwiGLU

    @property
    def resident_bytes(self) -> int:
        """Bytes of memory that the three matrices hold."""
        return sum(weight.untyped_storage().nbytes() for weight in self.weights)


class ReferenceBackend(ExpertBackend):
    """`ExpertBackend` on the CPU in torch. Formats: fp8_block, bf16, f32."""

    @property
    def name(self) -> str:
        return "reference"

    @property
    def kernel_class(self) -> int:
        return 0

    def resident_bytes(self, spec: ExpertSpec, weight_format: WeightFormat) -> int:
        """Memory that one packed expert will take, in bytes: fp32 whatever the stored format.

        Raises:
            InvalidRequest: a format that this back end cannot run.
        """
        _check_format(weight_format)
        return 3 * spec.hidden * spec.inter * _FP32_BYTES

    def pack(self, spec: ExpertSpec, weights: ExpertWeights) -> ReferenceExpert:
        _check_format(weights.format)
        wide, tall = (spec.inter, spec.hidden), (spec.hidden, spec.inter)
        try:
            gate = _dequantize(weights.gate, weights.format, wide, "gate")
            up = _dequantize(weights.up, weights.format, wide, "up")
            down = _dequantize(weights.down, weights.format, tall, "down")
        except _Unfit as unfit:
            raise CheckpointError(weights.origin, unfit.projection, unfit.reason) from None
        return ReferenceExpert(spec, SwiGLU(gate, up, down))

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
        _check_rows(packed, x, row_idx, offsets, topk_weights)
        with torch.no_grad():
            return grouped_swiglu(
                [expert.weights for expert in packed],
                x,
                row_idx,
                offsets,
                topk_weights,
                is_rounded=Rounding(rounding) is Rounding.BF16,
            )


def _check_format(weight_format: WeightFormat) -> None:
    if weight_format not in _DATA_DTYPES:
        known = ", ".join(known.name for known in _DATA_DTYPES)
        raise InvalidRequest(f"the reference back end runs {known}, not {weight_format.name}")


class _Unfit(Exception):
    """What is wrong with a weight, before it is known whose."""

    def __init__(self, projection: str, reason: str) -> None:
        super().__init__(projection, reason)
        self.projection = projection
        self.reason = reason


def _dequantize(
    weight: QuantizedWeight, weight_format: WeightFormat, shape: tuple[int, int], projection: str
) -> torch.Tensor:
    """The weight as f32[shape] in memory of its own."""
    data, expected = weight.data, _DATA_DTYPES[weight_format]
    if data.dtype is not expected:
        raise _Unfit(projection, f"{data.dtype}, {weight_format.name} means {expected}")
    if tuple(data.shape) != shape:
        raise _Unfit(projection, f"shape {list(data.shape)}, expected {list(shape)}")
    if weight_format is WeightFormat.FP8_BLOCK:
        values = _dequantize_fp8(data, weight.scale, projection)
    elif weight.scale is None:
        values = data.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    else:
        raise _Unfit(projection, f"block scales, which {weight_format.name} does not have")
    if not formats.is_finite(values):
        is_byte = weight_format is WeightFormat.FP8_BLOCK and formats.has_e4m3_nan(data)
        raise _Unfit(projection, "fp8 NaN (byte 0x7f or 0xff)" if is_byte else "a value that is not finite")
    return values


def _dequantize_fp8(data: torch.Tensor, scale: torch.Tensor | None, projection: str) -> torch.Tensor:
    if scale is None:
        raise _Unfit(projection, "no block scales")
    try:
        return formats.dequantize_fp8_block(data, scale)
    except ValueError as error:
        raise _Unfit(projection, str(error)) from error


def _own(expert: PackedExpert) -> ReferenceExpert:
    if not isinstance(expert, ReferenceExpert):
        raise InvalidRequest(f"an expert packed by another back end: {type(expert).__name__}")
    return expert


def _check_rows(
    experts: Sequence[ReferenceExpert],
    x: torch.Tensor,
    row_idx: torch.Tensor,
    offsets: Sequence[int],
    topk_weights: torch.Tensor,
) -> None:
    """Raises InvalidRequest if the arguments of `run` contradict each other."""
    if x.ndim != 2 or x.dtype not in (torch.float32, torch.bfloat16):
        raise InvalidRequest(f"x is {x.dtype}{list(x.shape)}, not a matrix of float32 or bfloat16")
    for expert in experts:
        if expert.spec.hidden != x.shape[1]:
            raise InvalidRequest(f"x has width {x.shape[1]}, the expert {expert.spec.hidden}")
    if row_idx.ndim != 1 or row_idx.dtype is not torch.int64:
        raise InvalidRequest(f"row_idx is {row_idx.dtype}{list(row_idx.shape)}, not a list of int64")
    if topk_weights.dtype is not torch.float32 or topk_weights.shape != row_idx.shape:
        raise InvalidRequest(
            f"topk_weights is {topk_weights.dtype}{list(topk_weights.shape)}, not float32{list(row_idx.shape)}"
        )
    _check_offsets(offsets, len(experts), row_idx.numel())
    if row_idx.numel() and not 0 <= int(row_idx.min()) <= int(row_idx.max()) < x.shape[0]:
        raise InvalidRequest(f"row_idx {int(row_idx.min())}..{int(row_idx.max())} for {x.shape[0]} rows")


def _check_offsets(offsets: Sequence[int], num_experts: int, num_pairs: int) -> None:
    is_right = len(offsets) == num_experts + 1 and offsets[0] == 0 and offsets[-1] == num_pairs
    if not is_right or any(begin > end for begin, end in pairwise(offsets)):
        raise InvalidRequest(
            f"offsets {list(offsets[:8])} must ascend from 0 to {num_pairs} in {num_experts + 1} entries"
        )
