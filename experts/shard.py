"""One expert's weights out of a checkpoint, and which experts it has.

Knows the names, shapes and formats that a model's spec asks for; does not know whether the bytes are the right ones
(`manifest.py`) or how they are computed with (`backend.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from shoal.experts.backend import ExpertWeights, QuantizedWeight
from shoal.experts.checkpoint import Checkpoint, StoredTensor
from shoal.experts.family import PROJECTIONS, ExpertLayout, ModelSpec
from shoal.experts.safetensors_header import TensorEntry
from shoal.experts.stacked_experts import read_stacked, stacked_format, stacked_names, unstacked
from shoal.experts.weight_formats import STORED, expert_shapes
from shoal.protocol.errors import CheckpointError, InvalidRequest
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import WeightFormat

FORMAT_OF_DTYPE = {
    "F8_E4M3": WeightFormat.FP8_BLOCK,
    "BF16": WeightFormat.BF16,
    "F32": WeightFormat.F32,
}
"""The weight formats that checkpoints are published in, by the dtype of the weights."""

PACKED_FP4_DTYPES = ("I8", "U8")
"""Pairs of e2m1 codes, in families that have some (`TensorNames.has_packed_fp4`)."""

DTYPES_OF_FORMAT = {weight_format: (dtype,) for dtype, weight_format in FORMAT_OF_DTYPE.items()} | {
    WeightFormat.MXFP4: PACKED_FP4_DTYPES
}

SCALE_DTYPES = {WeightFormat.FP8_BLOCK: ("F32", "F8_E8M0", "U8"), WeightFormat.MXFP4: ("F8_E8M0", "U8")}
"""Block scales: numbers, or UE8M0 exponents (2^(b - 127)) under either of two names. Other formats have none."""


@dataclass(frozen=True, slots=True)
class ExpertShard:
    """The stored tensors of one expert: gate, up, down; each weight, then its scales if the format has any. Of a
    stacked layer: its parts of the tensors of `stacked_experts.py`."""

    format: WeightFormat
    tensors: tuple[StoredTensor, ...]
    layout: ExpertLayout = ExpertLayout.SEPARATE

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(tensor.data.nbytes for tensor in self.tensors)

    def weights(self) -> ExpertWeights:
        """The same as a back end takes it."""
        origin = f"{self.tensors[0].file}: {self.name}"
        if self.layout is ExpertLayout.STACKED:
            return unstacked(self.format, self.tensors, origin)
        step = 2 if self.format in SCALE_DTYPES else 1
        is_packed = self.format is WeightFormat.MXFP4
        data = [tensor.data.view(torch.uint8) if is_packed else tensor.data for tensor in self.tensors]
        gate, up, down = (
            QuantizedWeight(data[i], data[i + 1] if step == 2 else None) for i in range(0, 3 * step, step)
        )
        return ExpertWeights(self.format, gate, up, down, origin=origin)

    @property
    def name(self) -> str:
        """What its tensors' names begin with, such as `model.layers.3.mlp.experts.5`; stacked: the first one's name."""
        name = self.tensors[0].name
        return name if self.layout is ExpertLayout.STACKED else name.rsplit(".", 2)[0]


def read_shard(checkpoint: Checkpoint, spec: ModelSpec, layer: LayerId, expert: ExpertId) -> ExpertShard:
    """Read one expert; its tensors' shapes and dtypes are checked before a byte of them is read.

    Raises:
        InvalidRequest: no such expert. CheckpointError: a tensor is missing or not of the shape or format it must have.
    """
    check_expert(spec, layer, expert)
    weight_format = format_of(checkpoint, spec, layer, expert)
    if spec.names.layout is ExpertLayout.STACKED:
        return ExpertShard(weight_format, read_stacked(checkpoint, spec, layer, expert), ExpertLayout.STACKED)
    names = expert_tensor_names(checkpoint, spec, layer, expert)
    for projection in PROJECTIONS:
        _check_projection(checkpoint, spec, layer, expert, projection, weight_format)
    return ExpertShard(weight_format, tuple(checkpoint.read(name) for name in names))


def check_expert(spec: ModelSpec, layer: LayerId, expert: ExpertId) -> None:
    """Raises InvalidRequest if the model has no such expert."""
    if layer not in spec.moe_layers:
        raise InvalidRequest(f"layer {layer} has no experts; layers {spec.moe_layers[0]}..{spec.moe_layers[-1]} do")
    if not 0 <= expert < spec.router.num_experts:
        raise InvalidRequest(f"expert {expert} of layer {layer}: there are 0..{spec.router.num_experts - 1}")


def expert_tensor_names(checkpoint: Checkpoint, spec: ModelSpec, layer: LayerId, expert: ExpertId) -> list[str]:
    """Names of an expert's tensors: gate, up, down, each weight followed by its scales where there are some; of a
    stacked layer, whose tensors all its experts share, `stacked_names`."""
    if spec.names.layout is ExpertLayout.STACKED:
        return stacked_names(checkpoint, spec, layer)
    names = []
    for projection in PROJECTIONS:
        weight = spec.expert_tensor(layer, expert, projection)
        scale = spec.expert_scale_tensor(layer, expert, projection)
        names += [weight, scale] if checkpoint.has(scale) else [weight]
    return names


def format_of(checkpoint: Checkpoint, spec: ModelSpec, layer: LayerId, expert: ExpertId) -> WeightFormat:
    """The format that an expert is stored in, by the dtype of its gate.

    Raises:
        CheckpointError: a dtype that no weight format has.
    """
    if spec.names.layout is ExpertLayout.STACKED:
        return stacked_format(checkpoint, spec, layer)
    name = spec.expert_tensor(layer, expert, "gate")
    dtype = checkpoint.entry(name).dtype
    if spec.names.has_packed_fp4 and dtype in PACKED_FP4_DTYPES:
        return WeightFormat.MXFP4
    if dtype not in FORMAT_OF_DTYPE:
        known = ", ".join(FORMAT_OF_DTYPE)
        raise CheckpointError(checkpoint.file_of(name), name, f"expert weights of dtype {dtype}; {known} can run")
    return FORMAT_OF_DTYPE[dtype]


def spec_in(checkpoint: Checkpoint, spec: ModelSpec) -> ModelSpec:
    """The spec without MTP layers that the checkpoint does not have (transformers saves none).

    Raises:
        CheckpointError: an expert is missing, or an MTP layer is there in part.
    """
    mtp_layers = [LayerId(spec.num_layers + i) for i in range(spec.num_mtp_layers)]
    absent = {layer for layer in mtp_layers if not any(map(checkpoint.has, _weight_names(checkpoint, spec, layer)))}
    layers = tuple(layer for layer in spec.moe_layers if layer not in absent)
    for layer in layers:
        for name in _weight_names(checkpoint, spec, layer):
            checkpoint.file_of(name)
    return replace(spec, moe_layers=layers, num_mtp_layers=spec.num_mtp_layers - len(absent))


def _weight_names(checkpoint: Checkpoint, spec: ModelSpec, layer: LayerId) -> Iterator[str]:
    if spec.names.layout is ExpertLayout.STACKED:
        yield from stacked_names(checkpoint, spec, layer)
        return
    for expert in range(spec.router.num_experts):
        for projection in PROJECTIONS:
            yield spec.expert_tensor(layer, ExpertId(expert), projection)


def _check_projection(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    layer: LayerId,
    expert: ExpertId,
    projection: str,
    weight_format: WeightFormat,
) -> None:
    """Raises CheckpointError unless a weight, and its scales if it needs some, are what the format says."""
    weight, scale = spec.expert_tensor(layer, expert, projection), spec.expert_scale_tensor(layer, expert, projection)
    stored, shape = STORED[weight_format], expert_shapes(spec.expert)[projection]
    _check_entry(checkpoint, weight, DTYPES_OF_FORMAT[weight_format], stored.data_shape(shape))
    scale_shape = stored.scale_shape(shape)
    if checkpoint.has(scale) is not (scale_shape is not None):
        reason = f"has block scales, which {weight_format.name} has not" if scale_shape is None else _NO_SCALES
        raise CheckpointError(checkpoint.file_of(weight), weight, reason)
    if scale_shape is not None:
        _check_entry(checkpoint, scale, SCALE_DTYPES[weight_format], scale_shape)


_NO_SCALES = "its block scales are missing"


def _check_entry(checkpoint: Checkpoint, name: str, dtypes: tuple[str, ...], shape: tuple[int, int]) -> None:
    entry = checkpoint.entry(name)
    if entry.dtype not in dtypes or entry.shape != shape:
        expected = f"{' or '.join(dtypes)}{list(shape)}"
        raise CheckpointError(checkpoint.file_of(name), name, f"{_describe(entry)}, expected {expected}")


def _describe(entry: TensorEntry) -> str:
    return f"{entry.dtype}{list(entry.shape)}"
