"""The back end that is easy to read: weights dequantized to fp32 at load, arithmetic of `kernels/reference.py`.

Memory: fp32 costs 12 * hidden * inter bytes an expert (DeepSeek-V3: 176 MB), four times the published fp8 and twice
bf16. That is the price of never dequantizing in a call (164 ms for a V3 expert in eager torch; model-and-kernels §C);
the C++ and CUDA back ends keep the stored format. Knows experts and rows; knows no peers and no files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shoal.experts.backend import ExpertBackend, ExpertWeights, PackedExpert
from shoal.experts.family import ExpertSpec
from shoal.experts.row_checks import check_rows
from shoal.experts.weight_formats import dequantize_expert
from shoal.kernels.reference import SwiGLU, grouped_swiglu
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.messages import Rounding, WeightFormat

_FP32_BYTES = 4


@dataclass(frozen=True, slots=True)
class ReferenceExpert:
    """An expert as this back end keeps it: three fp32 matrices."""

    spec: ExpertSpec
    weights: SwiGLU

    @property
    def resident_bytes(self) -> int:
        """Bytes of memory that the three matrices hold."""
        return sum(matrix.untyped_storage().nbytes() for matrix in self.weights.matrices)


class ReferenceBackend(ExpertBackend):
    """`ExpertBackend` on the CPU in torch. Formats: all of `weight_formats.py`."""

    @property
    def name(self) -> str:
        return "reference"

    @property
    def kernel_class(self) -> int:
        return 0

    def resident_bytes(self, spec: ExpertSpec, weight_format: WeightFormat) -> int:
        """Memory that one packed expert will take, in bytes: fp32 whatever the stored format."""
        return 3 * spec.hidden * spec.inter * _FP32_BYTES

    def pack(self, spec: ExpertSpec, weights: ExpertWeights) -> ReferenceExpert:
        matrices = dequantize_expert(spec, weights)
        return ReferenceExpert(spec, SwiGLU(matrices["gate"], matrices["up"], matrices["down"]))

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
        check_rows([expert.spec for expert in packed], x, row_idx, offsets, topk_weights)
        with torch.no_grad():
            return grouped_swiglu(
                [expert.weights for expert in packed],
                x,
                row_idx,
                offsets,
                topk_weights,
                is_rounded=Rounding(rounding) is Rounding.BF16,
            )


def _own(expert: PackedExpert) -> ReferenceExpert:
    if not isinstance(expert, ReferenceExpert):
        raise InvalidRequest(f"an expert packed by another back end: {type(expert).__name__}")
    return expert
