"""The back end that is easy to read: weights dequantized to fp32 at load, arithmetic of `kernels/reference.py`.

Memory: fp32 costs 12 * hidden * inter bytes an expert (DeepSeek-V3: 176 MB), four times the published fp8 and twice
bf16. That is the price of never dequantizing in a call (164 ms for a V3 expert in eager torch; model-and-kernels §C);
the C++ and CUDA back ends keep the stored format. Knows experts and rows; knows no peers and no files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from shoal.experts.backend import ExpertBackend, ExpertWeights, PackedExpert
from shoal.experts.family import ExpertSpec
from shoal.experts.row_checks import check_rows
from shoal.experts.weight_formats import checked_biases, dequantize_expert, stored_bytes
from shoal.kernels.reference import SwiGLU, grouped_swiglu
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.messages import Rounding, WeightFormat


@dataclass(frozen=True, slots=True)
class ReferenceExpert:
    """An expert as this back end keeps it: three fp32 matrices."""

    spec: ExpertSpec
    weights: SwiGLU

    @property
    def resident_bytes(self) -> int:
        """Bytes of memory that the three matrices and their biases hold."""
        tensors = (*self.weights.matrices, *(self.weights.biases or ()))
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


class ReferenceBackend(ExpertBackend):
    """`ExpertBackend` on the CPU in torch. Formats: all of `weight_formats.py`."""

    @property
    def name(self) -> str:
        return "reference"

    @property
    def kernel_class(self) -> int:
        return 0

    @property
    def is_row_exact(self) -> bool:
        return False  # torch sums one row otherwise than four

    def resident_bytes(self, spec: ExpertSpec, weight_format: WeightFormat) -> int:
        """Memory that one packed expert will take, in bytes: fp32 whatever the stored format."""
        return stored_bytes(spec, WeightFormat.F32)

    def free_bytes(self) -> int:
        """Free main memory."""
        return int(psutil.virtual_memory().available)

    def pack(self, spec: ExpertSpec, weights: ExpertWeights) -> ReferenceExpert:
        matrices, biases = dequantize_expert(spec, weights), checked_biases(spec, weights)
        plain = SwiGLU(matrices["gate"], matrices["up"], matrices["down"], spec.activation, biases)
        return ReferenceExpert(spec, plain)

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
