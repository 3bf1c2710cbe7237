"""The seam to the kernels (DESIGN §4): pack an expert once at load, then run batches of (expert, rows).

Back ends: `reference` (torch, readable), `cpu` (C++), `cuda` (Triton). Knows experts and rows; knows no peers and no
files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from shoal.experts.family import ExpertSpec
from shoal.kernels.reference import Biases
from shoal.protocol.messages import Rounding, WeightFormat


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """One weight `[out, in]` as stored: `data`, and `scale` its block scales (None: no scales).

    | format | data | scale |
    |---|---|---|
    | FP8_BLOCK | f8_e4m3fn[out, in] | f32, f8_e8m0fnu or u8[ceil(out/128), ceil(in/128)] |
    | BF16, F32 | bf16, f32[out, in] | None |
    | INT8_G128 | i8[out, in] | bf16[out, ceil(in/128)] |
    | INT4_G32, INT4_G128 | u8[out, in/2], two codes a byte | bf16[out, ceil(in/group)] of 5 significant bits |
    | MXFP4 | u8[out, in/2], two codes a byte | f8_e8m0fnu or u8[out, ceil(in/32)] |

    Layouts: `kernels/formats.py`, `int_groups.py`, `mxfp4.py`, `nibbles.py`; checks: `weight_formats.py`.
    """

    data: torch.Tensor
    scale: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """One expert as stored in the checkpoint, or as `weight_formats.quantize_expert` made it of one."""

    format: WeightFormat
    gate: QuantizedWeight
    up: QuantizedWeight
    down: QuantizedWeight
    biases: Biases | None = None
    """f32|bf16: gate[inter], up[inter], down[hidden], where the spec has some."""
    origin: str = "an expert"
    """What errors call it: the file and the name of the expert in the checkpoint."""


class PackedExpert(Protocol):
    """An expert in a back end's own layout."""

    @property
    def spec(self) -> ExpertSpec: ...

    @property
    def resident_bytes(self) -> int: ...


class ExpertBackend(Protocol):
    """Runs experts on one device. Not thread-safe: called from one worker thread."""

    @property
    def name(self) -> str: ...

    @property
    def kernel_class(self) -> int:
        """As in holder records: 0 reference, 1 cpu, 2 cuda."""

    @property
    def is_row_exact(self) -> bool:
        """Whether a row's answer has the same bits whatever other rows and experts are in the call."""

    def resident_bytes(self, spec: ExpertSpec, weight_format: WeightFormat) -> int:
        """Memory that one packed expert will take, in bytes."""

    def free_bytes(self) -> int:
        """Memory that packed experts may still take where this back end keeps them, in bytes."""

    def pack(self, spec: ExpertSpec, weights: ExpertWeights) -> PackedExpert:
        """Bring an expert into this back end's layout.

        Raises:
            CheckpointError: shapes or dtypes do not fit `spec` and the format, a value is not finite, or there are
            biases where `spec` has none, or the other way round. InvalidRequest: it does not fit the device's memory.
        """

    def run(
        self,
        experts: Sequence[PackedExpert],
        x: torch.Tensor,
        row_idx: torch.Tensor,
        offsets: Sequence[int],
        topk_weights: torch.Tensor,
        rounding: Rounding,
    ) -> torch.Tensor:
        """Weighted partial sum over `experts`, added in their order, in fp32.

        x: f32|bf16[T, H] · row_idx: i64[P] into x's rows, grouped by expert: expert i has the pairs
        offsets[i]:offsets[i + 1] (len(offsets) == len(experts) + 1) · topk_weights: f32[P]. Returns f32[T, H];
        rows that no pair names are zero. Arithmetic: DESIGN §7, rounding 0 or 1.

        Raises:
            InvalidRequest: shapes or indices that contradict each other. Busy: no memory for this call.
        """
