"""What each weight format is made of: dtypes, shapes, bytes, and how it becomes numbers and back.

The one table that back ends check stored experts against (DESIGN §7, docs/adr/0007). Layouts are in the modules of
`kernels/` that it names. Knows no files and no devices.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod

import torch

from shoal.experts.backend import ExpertWeights, QuantizedWeight
from shoal.experts.specs import PROJECTIONS, ExpertSpec
from shoal.kernels import formats, int_groups, mxfp4
from shoal.kernels.reference import Biases
from shoal.protocol.errors import CheckpointError
from shoal.protocol.messages import WeightFormat

Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class StoredFormat:
    """How one weight `[out, in]` is stored, and its two conversions."""

    data_dtype: torch.dtype
    dequantize: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None
    """data, scale -> f32[out, in], exactly; None: data are the numbers."""
    quantize: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
    codes_per_item: int = 1
    """Columns in one element of data."""
    scale_block: Shape | None = None
    """Rows and columns that share a scale; None: no scales."""
    scale_size_bytes: int = 0

    def data_shape(self, shape: Shape) -> Shape:
        """Shape of `data` of a weight of `shape`."""
        return shape[0], -(-shape[1] // self.codes_per_item)

    def scale_shape(self, shape: Shape) -> Shape | None:
        """Shape of `scale` of a weight of `shape`; None: it has none."""
        if self.scale_block is None:
            return None
        return -(-shape[0] // self.scale_block[0]), -(-shape[1] // self.scale_block[1])

    def size_bytes(self, shape: Shape) -> int:
        """Bytes of data and scales of a weight of `shape`."""
        scale = self.scale_shape(shape)
        return prod(self.data_shape(shape)) * self.data_dtype.itemsize + (
            prod(scale) * self.scale_size_bytes if scale else 0
        )


def _plain(dtype: torch.dtype, weight: torch.Tensor) -> tuple[torch.Tensor, None]:
    return weight.to(dtype, copy=True), None


def _int4(group_size: int) -> StoredFormat:
    return StoredFormat(
        torch.uint8,
        partial(int_groups.dequantize_int4, group_size=group_size),
        partial(int_groups.quantize_int4, group_size=group_size),
        codes_per_item=2,
        scale_block=(1, group_size),
        scale_size_bytes=2,
    )


STORED: Mapping[WeightFormat, StoredFormat] = {
    WeightFormat.FP8_BLOCK: StoredFormat(
        torch.float8_e4m3fn,
        formats.dequantize_fp8_block,
        formats.quantize_fp8_block,
        scale_block=(formats.BLOCK, formats.BLOCK),
        scale_size_bytes=4,  # as fp32; a checkpoint may also ship one byte
    ),
    WeightFormat.BF16: StoredFormat(torch.bfloat16, None, partial(_plain, torch.bfloat16)),
    WeightFormat.F32: StoredFormat(torch.float32, None, partial(_plain, torch.float32)),
    WeightFormat.INT8_G128: StoredFormat(
        torch.int8,
        int_groups.dequantize_int8,
        int_groups.quantize_int8,
        scale_block=(1, int_groups.INT8_GROUP),
        scale_size_bytes=2,
    ),
    WeightFormat.INT4_G32: _int4(32),
    WeightFormat.INT4_G128: _int4(128),
    WeightFormat.MXFP4: StoredFormat(
        torch.uint8,
        mxfp4.dequantize_mxfp4,
        mxfp4.quantize_mxfp4,
        codes_per_item=2,
        scale_block=(1, mxfp4.GROUP),
        scale_size_bytes=1,
    ),
}
"""Every format that a manifest, record or request can name."""


def expert_shapes(spec: ExpertSpec) -> dict[str, Shape]:
    """Shapes of gate, up and down as `[out, in]`."""
    wide, tall = (spec.inter, spec.hidden), (spec.hidden, spec.inter)
    return dict(zip(PROJECTIONS, (wide, wide, tall), strict=True))


def stored_bytes(spec: ExpertSpec, weight_format: WeightFormat) -> int:
    """Bytes of one expert in `weight_format`, scales included, and biases as fp32."""
    shapes = expert_shapes(spec).values()
    biases = 4 * sum(rows for rows, _ in shapes) if spec.has_biases else 0
    return sum(STORED[weight_format].size_bytes(shape) for shape in shapes) + biases


def quantize_expert(
    weights: Mapping[str, torch.Tensor], weight_format: WeightFormat, origin: str, biases: Biases | None = None
) -> ExpertWeights:
    """Store an expert's gate, up and down (f32|bf16, by name) in `weight_format`; biases stay as they are. The same
    weights give the same bytes.

    Raises:
        CheckpointError: a weight that the format can not hold (not finite, too large, an odd number of columns).
    """
    stored = {}
    for projection in PROJECTIONS:
        try:
            stored[projection] = QuantizedWeight(*STORED[weight_format].quantize(weights[projection]))
        except ValueError as error:
            raise CheckpointError(origin, projection, str(error)) from error
    return ExpertWeights(weight_format, **stored, biases=biases, origin=origin)


def dequantize_expert(spec: ExpertSpec, weights: ExpertWeights) -> dict[str, torch.Tensor]:
    """Gate, up and down by name as f32[out, in] in memory of their own: exactly the numbers that are stored.

    Raises:
        CheckpointError: shapes or dtypes do not fit `spec` and the format, or a value is not finite.
    """
    values = {}
    for projection, shape in expert_shapes(spec).items():
        try:
            values[projection] = _dequantize(getattr(weights, projection), weights.format, shape)
        except ValueError as error:
            raise CheckpointError(weights.origin, projection, str(error)) from None
    return values


def checked_biases(spec: ExpertSpec, weights: ExpertWeights) -> Biases | None:
    """The expert's biases as f32, contiguous, in memory of their own; None where the spec has none.

    Raises:
        CheckpointError: missing, or there although the spec has none; another shape or dtype; a value that is not
        finite.
    """
    if spec.has_biases is not (weights.biases is not None):
        raise CheckpointError(weights.origin, "biases", "missing" if spec.has_biases else "this family has none")
    if weights.biases is None:
        return None
    for (projection, shape), bias in zip(expert_shapes(spec).items(), weights.biases, strict=True):
        _check_bias(weights.origin, projection, bias, shape[0])
    gate, up, down = (bias.to(torch.float32, copy=True).contiguous() for bias in weights.biases)
    return Biases(gate, up, down)


def _check_bias(origin: str, projection: str, bias: torch.Tensor, rows: int) -> None:
    if bias.dtype not in (torch.float32, torch.bfloat16) or tuple(bias.shape) != (rows,):
        found = f"{bias.dtype}{list(bias.shape)}"
        raise CheckpointError(origin, f"{projection} bias", f"{found}, expected float32 or bfloat16[{rows}]")
    if not formats.is_finite(bias.float()):
        raise CheckpointError(origin, f"{projection} bias", "a value that is not finite")


def _dequantize(weight: QuantizedWeight, weight_format: WeightFormat, shape: Shape) -> torch.Tensor:
    """Raises ValueError if the weight is not what it should be."""
    stored = STORED[weight_format]
    _check(weight, weight_format, shape)
    if stored.dequantize is None or weight.scale is None:
        values = weight.data.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    else:
        values = stored.dequantize(weight.data, weight.scale)
    if not formats.is_finite(values):
        is_byte = weight_format is WeightFormat.FP8_BLOCK and formats.has_e4m3_nan(weight.data)
        raise ValueError("fp8 NaN (byte 0x7f or 0xff)" if is_byte else "a value that is not finite")
    return values


def _check(weight: QuantizedWeight, weight_format: WeightFormat, shape: Shape) -> None:
    stored = STORED[weight_format]
    if weight.data.dtype is not stored.data_dtype:
        raise ValueError(f"{weight.data.dtype}, {weight_format.name} means {stored.data_dtype}")
    if shape[1] % stored.codes_per_item:
        raise ValueError(f"{shape[1]} columns, {weight_format.name} needs an even number")
    if tuple(weight.data.shape) != stored.data_shape(shape):
        raise ValueError(f"shape {list(weight.data.shape)}, expected {list(stored.data_shape(shape))}")
    if weight.scale is None and stored.scale_block is not None:
        raise ValueError("no block scales")
    if weight.scale is not None and stored.scale_block is None:
        raise ValueError(f"block scales, which {weight_format.name} does not have")
