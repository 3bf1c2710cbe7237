"""One expert's weights out of a checkpoint, and which experts it has.

Knows the names, shapes and formats that a model's spec asks for; does not know whether the bytes are the right ones
(`manifest.py`) or how they are computed with (`backend.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from shoal.experts.backend import ExpertWeights, QuantizedWeight
from shoal.experts.checkpoint import Checkpoint, StoredTensor
from shoal.experts.family import PROJECTIONS, SCALE_SUFFIX, ExpertSpec, ModelSpec
from shoal.experts.safetensors_header import TensorEntry
from shoal.kernels.formats import num_blocks
from shoal.protocol.errors import CheckpointError, InvalidRequest
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import WeightFormat

FORMAT_OF_DTYPE = {
    "F8_E4M3": WeightFormat.FP8_BLOCK,
    "BF16": WeightFormat.BF16,
    "F32": WeightFormat.F32,
}
"""The weight formats that checkpoints are published in, by the dtype of the weights."""

DTYPE_OF_FORMAT = {weight_format: dtype for dtype, weight_format in FORMAT_OF_DTYPE.items()}

SCALE_DTYPES = ("F32", "F8_E8M0", "U8")
"""Block scales: numbers, or UE8M0 exponents (2^(b - 127)) under either of two names."""


@dataclass(frozen=True, slots=True)
class ExpertShard:
    """The stored tensors of one expert: gate, up, down; each weight, then its scales if the format has any."""

    format: WeightFormat
    tensors: tuple[StoredTensor, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(tensor.data.nbytes for tensor in self.tensors)

    def weights(self) -> ExpertWeights:
        """The same as a back end takes it."""
        step = 2 if self.format is WeightFormat.FP8_BLOCK else 1
        data = [tensor.data for tensor in self.tensors]
        gate, up, down = (
            QuantizedWeight(data[i], data[i + 1] if step == 2 else None) for i in range(0, 3 * step, step)
        )
        return ExpertWeights(self.format, gate, up, down, origin=f"{self.tensors[0].file}: {self.name}")

    @property
    def name(self) -> str:
        """What the names of its tensors begin with, such as `model.layers.3.mlp.experts.5`."""
        return self.tensors[0].name.rsplit(".", 2)[0]


def read_shard(checkpoint: Checkpoint, spec: ModelSpec, layer: LayerId, expert: ExpertId) -> ExpertShard:
    """Read one expert; its tensors' shapes and dtypes are checked before a byte of them is read.

    Raises:
        InvalidRequest: no such expert. CheckpointError: a tensor is missing or not of the shape or format it must have.
    """
    check_expert(spec, layer, expert)
    names = expert_tensor_names(checkpoint, spec, layer, expert)
    weight_format = format_of(checkpoint, spec, layer, expert)
    for name in names:
        _check_entry(checkpoint, name, spec, weight_format)
    _check_scales_present(checkpoint, names, weight_format)
    return ExpertShard(weight_format, tuple(checkpoint.read(name) for name in names))


def check_expert(spec: ModelSpec, layer: LayerId, expert: ExpertId) -> None:
    """Raises InvalidRequest if the model has no such expert."""
    if layer not in spec.moe_layers:
        raise InvalidRequest(f"layer {layer} has no experts; layers {spec.moe_layers[0]}..{spec.moe_layers[-1]} do")
    if not 0 <= expert < spec.router.num_experts:
        raise InvalidRequest(f"expert {expert} of layer {layer}: there are 0..{spec.router.num_experts - 1}")


def expert_tensor_names(checkpoint: Checkpoint, spec: ModelSpec, layer: LayerId, expert: ExpertId) -> list[str]:
    """Names of an expert's tensors: gate, up, down, each weight followed by its scales where there are some."""
    names = []
    for projection in PROJECTIONS:
        weight = spec.expert_tensor(layer, expert, projection)
        names += [weight, weight + SCALE_SUFFIX] if checkpoint.has(weight + SCALE_SUFFIX) else [weight]
    return names


def format_of(checkpoint: Checkpoint, spec: ModelSpec, layer: LayerId, expert: ExpertId) -> WeightFormat:
    """The format that an expert is stored in, by the dtype of its gate.

    Raises:
        CheckpointError: a dtype that no weight format has.
    """
    name = spec.expert_tensor(layer, expert, "gate")
    dtype = checkpoint.entry(name).dtype
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
    absent = {layer for layer in mtp_layers if not any(map(checkpoint.has, _weight_names(spec, layer)))}
    layers = tuple(layer for layer in spec.moe_layers if layer not in absent)
    for layer in layers:
        for name in _weight_names(spec, layer):
            checkpoint.file_of(name)
    return replace(spec, moe_layers=layers, num_mtp_layers=spec.num_mtp_layers - len(absent))


def _weight_names(spec: ModelSpec, layer: LayerId) -> Iterator[str]:
    for expert in range(spec.router.num_experts):
        for projection in PROJECTIONS:
            yield spec.expert_tensor(layer, ExpertId(expert), projection)


def _check_entry(checkpoint: Checkpoint, name: str, spec: ModelSpec, weight_format: WeightFormat) -> None:
    entry, is_scale = checkpoint.entry(name), name.endswith(SCALE_SUFFIX)
    dtypes = SCALE_DTYPES if is_scale else (DTYPE_OF_FORMAT[weight_format],)
    shape = _shape(spec, name.removesuffix(SCALE_SUFFIX), is_scale)
    if entry.dtype not in dtypes or entry.shape != shape:
        raise CheckpointError(
            checkpoint.file_of(name), name, f"{_describe(entry)}, expected {' or '.join(dtypes)}{list(shape)}"
        )


def _shape(spec: ModelSpec, weight: str, is_scale: bool) -> tuple[int, int]:
    shape = _weight_shape(spec.expert, is_down=f".{spec.names.down}." in weight)
    return (num_blocks(shape[0]), num_blocks(shape[1])) if is_scale else shape


def _weight_shape(expert: ExpertSpec, *, is_down: bool) -> tuple[int, int]:
    return (expert.hidden, expert.inter) if is_down else (expert.inter, expert.hidden)


def _describe(entry: TensorEntry) -> str:
    return f"{entry.dtype}{list(entry.shape)}"


def _check_scales_present(checkpoint: Checkpoint, names: list[str], weight_format: WeightFormat) -> None:
    has_scales = weight_format is WeightFormat.FP8_BLOCK
    if len(names) == (6 if has_scales else 3):
        return
    weights = [name for name in names if not name.endswith(SCALE_SUFFIX)]
    odd = next(name for name in weights if (name + SCALE_SUFFIX in names) is not has_scales)
    reason = "its block scales are missing" if has_scales else f"has block scales, which {weight_format.name} has not"
    raise CheckpointError(checkpoint.file_of(odd), odd, reason)
