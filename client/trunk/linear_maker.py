"""Makes the trunk's linear maps of stored weights, as the user has chosen: dense in torch, or packed in some format.

Stands between `checkpoint.py`, which knows the names, and `linear.py`, which multiplies. Each weight is read, turned
and dropped before the next one is read. What a format changes are the plain linears: attention's projections, dense
MLPs, shared experts and MTP's join. Embedding, head, router and norms stay as published (model-and-kernels §A7 counts
them so): they are a tenth of the trunk, and a head or router that is off chooses another token or expert.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor

from shoal.client.trunk.head_maps import HeadSplit, packed_head_maps
from shoal.client.trunk.linear import DenseHeadMaps, DenseLinear, HeadMaps, Linear, PackedLinear
from shoal.experts.backend import QuantizedWeight
from shoal.experts.cpu_backend import pack_matrix
from shoal.experts.stored_weight import StoredWeight
from shoal.kernels.cpu import CpuKernels, Format, is_available
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.messages import WeightFormat


class TrunkFormat(StrEnum):
    """How the trunk's plain linears are held."""

    DENSE = "dense"
    """torch tensors in the dtype of the arithmetic: four (fp32) or two (bf16) bytes a weight, needs no extension."""
    AS_PUBLISHED = "as-published"
    """The checkpoint's own bytes, multiplied exactly: fp8 stays fp8, bf16 stays bf16."""
    FP8_BLOCK = "fp8_block"
    BF16 = "bf16"
    INT8_G128 = "int8_g128"
    INT4_G32 = "int4_g32"
    INT4_G128 = "int4_g128"
    MXFP4 = "mxfp4"

    def stored_as(self, published: WeightFormat) -> WeightFormat:
        """The weight format of a plain linear that was published in `published`.

        Raises:
            InvalidRequest: `dense` is no weight format.
        """
        if self is TrunkFormat.DENSE:
            raise InvalidRequest("a dense trunk holds torch tensors, not a weight format")
        return published if self is TrunkFormat.AS_PUBLISHED else WeightFormat[self.name]


class LinearMaker(Protocol):
    """How stored weights become what the trunk multiplies with."""

    def linear(self, weight: StoredWeight, bias: Tensor | None = None) -> Linear:
        """A plain linear, in the format that was chosen. bias: [out] of any float dtype."""

    def head(self, weight: StoredWeight) -> Linear:
        """The map to logits."""

    def router(self, weight: StoredWeight) -> Linear:
        """The map to router logits, which takes and gives fp32 whatever the trunk's dtype."""

    def embedding(self, weight: StoredWeight) -> Tensor:
        """float[V, H]; its rows become the trunk's dtype when they are looked up."""

    def head_maps(self, kv_b: StoredWeight, split: HeadSplit) -> tuple[HeadMaps, HeadMaps]:
        """`kv_b_proj` as attention uses it: queries into the latent space, and latents to values."""


@dataclass(frozen=True, slots=True)
class DenseMaker(LinearMaker):
    """torch tensors in one dtype; the router's in fp32."""

    dtype: torch.dtype

    def linear(self, weight: StoredWeight, bias: Tensor | None = None) -> Linear:
        return DenseLinear(weight.values(self.dtype), None if bias is None else bias.to(self.dtype))

    def head(self, weight: StoredWeight) -> Linear:
        return self.linear(weight)

    def router(self, weight: StoredWeight) -> Linear:
        return DenseLinear(weight.values())

    def embedding(self, weight: StoredWeight) -> Tensor:
        return weight.values(self.dtype)

    def head_maps(self, kv_b: StoredWeight, split: HeadSplit) -> tuple[HeadMaps, HeadMaps]:
        heads = kv_b.values(self.dtype).view(split.num_heads, split.nope + split.v, split.rank)
        to_keys, to_values = heads[:, : split.nope], heads[:, split.nope :].mT
        return DenseHeadMaps(to_keys.contiguous()), DenseHeadMaps(to_values.contiguous())


@dataclass(frozen=True, slots=True)
class PackedMaker(LinearMaker):
    """Matrices of the C++ kernels."""

    kernels: CpuKernels
    format: TrunkFormat

    def linear(self, weight: StoredWeight, bias: Tensor | None = None) -> Linear:
        return self._packed(weight.converted(self.format.stored_as(weight.format)), bias)

    def head(self, weight: StoredWeight) -> Linear:
        return self._packed(weight)

    def router(self, weight: StoredWeight) -> Linear:
        return self._packed(weight)

    def embedding(self, weight: StoredWeight) -> Tensor:
        return weight.data if weight.scale is None else weight.values()

    def head_maps(self, kv_b: StoredWeight, split: HeadSplit) -> tuple[HeadMaps, HeadMaps]:
        return packed_head_maps(self.kernels, kv_b, split, self.format.stored_as(kv_b.format))

    def _packed(self, weight: StoredWeight, bias: Tensor | None = None) -> PackedLinear:
        rows, columns = weight.shape
        stored = QuantizedWeight(weight.data, weight.scale)
        matrix = pack_matrix(stored, Format(weight.format), (rows, columns), weight.file, weight.name)
        return PackedLinear(self.kernels, matrix, None if bias is None else bias.float())


def require_kernels(trunk_format: TrunkFormat) -> None:
    """Raise InvalidRequest for a packed format where shoal was installed without its C++ kernels.

    No other path is taken instead: torch has none that multiplies from these formats without dequantizing at each call.
    """
    if trunk_format is not TrunkFormat.DENSE and not is_available():
        raise InvalidRequest(
            f"a trunk in {trunk_format} needs the C++ kernels, which were not built at installation"
            " (is there a C++20 compiler?); without them there is only a dense one"
        )


def linear_maker(trunk_format: TrunkFormat, dtype: torch.dtype, threads: int) -> LinearMaker:
    """The maker for a trunk in `trunk_format` with arithmetic in `dtype`. `threads`: of the packed formats' kernels.

    Raises:
        InvalidRequest: as `require_kernels`.
    """
    require_kernels(trunk_format)
    return DenseMaker(dtype) if trunk_format is TrunkFormat.DENSE else PackedMaker(CpuKernels(threads), trunk_format)
