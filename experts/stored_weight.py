"""A weight of the trunk as the checkpoint has it: its bytes, its format, and how it becomes numbers or another format.

`store.py` reads it, `client/trunk/linear_maker.py` makes a linear map of it. Conversion goes a strip of rows at a time,
so that a weight is never whole in fp32. Knows no models.
"""

from dataclasses import dataclass

import torch

from shoal.experts.backend import QuantizedWeight
from shoal.experts.weight_formats import STORED
from shoal.kernels import formats
from shoal.protocol.errors import CheckpointError
from shoal.protocol.messages import WeightFormat

STRIP_ROWS = 256
"""Rows converted at a time, a multiple of every format's block: 19 MB in fp32 at the widest (18,432 columns)."""

FORMAT_OF_DTYPE = {
    torch.float8_e4m3fn: WeightFormat.FP8_BLOCK,
    torch.bfloat16: WeightFormat.BF16,
    torch.float32: WeightFormat.F32,
}


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight `[out, in]` in one of the formats; `name` and `file` are what errors call it."""

    name: str
    file: str
    format: WeightFormat
    data: torch.Tensor
    scale: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """As numbers: 4-bit formats have two columns an element."""
        return (*self.data.shape[:-1], self.data.shape[-1] * STORED[self.format].codes_per_item)

    def error(self, reason: str) -> CheckpointError:
        """What to raise if this weight cannot be used."""
        return CheckpointError(self.file, self.name, reason)

    def check_scale(self) -> None:
        """Raise CheckpointError if the scales are not of the shape that the data need."""
        if self.scale is not None:
            rows, columns = self.shape
            expected = STORED[self.format].scale_shape((rows, columns))
            if tuple(self.scale.shape) != expected:
                raise self.error(f"scales of shape {list(self.scale.shape)}, expected {list(expected or ())}")

    def values(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The numbers, dtype[out, in]: dequantized exactly, then rounded to dtype; not copied if they are that already.

        Raises:
            CheckpointError: a quantized weight that is not finite, or scales of another dtype.
        """
        dequantize = STORED[self.format].dequantize
        if dequantize is None or self.scale is None:
            return self.data.to(dtype)
        try:
            values = dequantize(self.data, self.scale)
        except ValueError as error:
            raise self.error(str(error)) from error
        if not formats.is_finite(values):
            is_byte = self.format is WeightFormat.FP8_BLOCK and formats.has_e4m3_nan(self.data)
            raise self.error("fp8 NaN (byte 0x7f or 0xff)" if is_byte else "a scale is not finite")
        return values.to(dtype)

    def converted(self, wanted: WeightFormat) -> "StoredWeight":
        """The same weight in another format; this very one if it is in it. Holds both, and one strip in fp32.

        Raises:
            CheckpointError: it is not finite, or `wanted` can not hold it (an odd number of columns in 4 bits).
        """
        if wanted is self.format:
            return self
        parts = [self._quantized(strip, wanted) for strip in self._strips()]
        scales = [part.scale for part in parts if part.scale is not None]
        data = torch.cat([part.data for part in parts])
        return StoredWeight(self.name, self.file, wanted, data, torch.cat(scales) if scales else None)

    def _strips(self) -> "list[StoredWeight]":
        """Views of `STRIP_ROWS` rows each."""
        data, scale = torch.split(self.data, STRIP_ROWS), self.scale
        if scale is None:
            return [StoredWeight(self.name, self.file, self.format, part) for part in data]
        block = STORED[self.format].scale_block
        rows_per_scale = block[0] if block else 1
        scales = torch.split(scale, STRIP_ROWS // rows_per_scale)
        return [StoredWeight(self.name, self.file, self.format, *parts) for parts in zip(data, scales, strict=True)]

    def _quantized(self, strip: "StoredWeight", wanted: WeightFormat) -> QuantizedWeight:
        try:
            return QuantizedWeight(*STORED[wanted].quantize(strip.values()))
        except ValueError as error:
            raise self.error(str(error)) from error
