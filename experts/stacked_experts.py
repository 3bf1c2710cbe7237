"""Experts that a checkpoint keeps stacked, all of a layer in one tensor: the layout of gpt-oss.

| as published (mxfp4) | as transformers saves it dequantized |
|---|---|
| `gate_up_proj_blocks` u8[E, 2I, H/32, 16], `gate_up_proj_scales` u8[E, 2I, H/32] | `gate_up_proj` bf16[E, H, 2I] |
| `down_proj_blocks` u8[E, H, I/32, 16], `down_proj_scales` u8[E, H, I/32] | `down_proj` bf16[E, I, H] |
| `gate_up_proj_bias` bf16[E, 2I], `down_proj_bias` bf16[E, H] | the same |

2I alternates: gate 0, up 0, gate 1, up 1, … A byte holds two e2m1 codes, the low nibble first; a scale byte b is
2^(b - 127): exactly `kernels/mxfp4.py`, so that nothing is quantized again. Sources: `Mxfp4GptOssExperts`,
`convert_moe_packed_tensors` and `GptOssExperts` of transformers 5.23. Only one expert's part of a tensor is read.
Knows names and shapes; knows no bytes' right values and no kernels.
"""

from dataclasses import dataclass

from shoal.experts.backend import ExpertWeights, QuantizedWeight
from shoal.experts.checkpoint import Checkpoint, StoredTensor
from shoal.experts.specs import ModelSpec
from shoal.kernels.mxfp4 import GROUP
from shoal.kernels.reference import Biases
from shoal.protocol.errors import CheckpointError
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import WeightFormat

FORMAT_OF_PLAIN_DTYPE = {"BF16": WeightFormat.BF16, "F32": WeightFormat.F32}

BLOCKS = "_blocks"


@dataclass(frozen=True, slots=True)
class _Stack:
    """One stacked tensor: its name, dtype, and the shape of one expert in it."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def stacked_names(checkpoint: Checkpoint, spec: ModelSpec, layer: LayerId) -> list[str]:
    """Names of the tensors that a layer's experts share: gate and up, down, then the biases.

    Raises:
        CheckpointError: neither blocks nor plain weights are there.
    """
    return [stack.name for stack in _stacks(checkpoint, spec, layer)]


def stacked_format(checkpoint: Checkpoint, spec: ModelSpec, layer: LayerId) -> WeightFormat:
    """The format that a layer's experts are stored in.

    Raises:
        CheckpointError: gate and up are not there, or of a dtype that no weight format has.
    """
    name = spec.expert_tensor(layer, ExpertId(0), "gate")
    if checkpoint.has(name + BLOCKS):
        return WeightFormat.MXFP4
    dtype = checkpoint.entry(name).dtype
    if dtype not in FORMAT_OF_PLAIN_DTYPE:
        known = ", ".join(FORMAT_OF_PLAIN_DTYPE)
        raise CheckpointError(checkpoint.file_of(name), name, f"expert weights of dtype {dtype}; {known} can run")
    return FORMAT_OF_PLAIN_DTYPE[dtype]


def read_stacked(checkpoint: Checkpoint, spec: ModelSpec, layer: LayerId, expert: ExpertId) -> tuple[StoredTensor, ...]:
    """One expert's part of each tensor, in the order of `stacked_names`; shapes are checked before a byte is read.

    Raises:
        CheckpointError: a tensor is missing, or not of the shape or dtype it must have.
    """
    stacks = _stacks(checkpoint, spec, layer)
    for stack in stacks:
        entry, shape = checkpoint.entry(stack.name), (spec.router.num_experts, *stack.shape)
        if entry.dtype != stack.dtype or entry.shape != shape:
            found = f"{entry.dtype}{list(entry.shape)}, expected {stack.dtype}{list(shape)}"
            raise CheckpointError(checkpoint.file_of(stack.name), stack.name, found)
    return tuple(checkpoint.read_part(stack.name, expert) for stack in stacks)


def unstacked(weight_format: WeightFormat, tensors: tuple[StoredTensor, ...], origin: str) -> ExpertWeights:
    """What `read_stacked` read as a back end takes it: gate and up apart, `[out, in]`."""
    parts = [tensor.data for tensor in tensors]
    if weight_format is WeightFormat.MXFP4:
        gate_up, down = (QuantizedWeight(parts[i].flatten(1), parts[i + 1]) for i in (0, 2))
    else:
        gate_up, down = (QuantizedWeight(part.T.contiguous()) for part in parts[:2])
    gate_up_bias, down_bias = parts[-2:]
    biases = Biases(gate_up_bias[0::2].contiguous(), gate_up_bias[1::2].contiguous(), down_bias)
    gate, up = _every_second_row(gate_up, 0), _every_second_row(gate_up, 1)
    return ExpertWeights(weight_format, gate, up, down, biases, origin)


def _every_second_row(weight: QuantizedWeight, first: int) -> QuantizedWeight:
    scale = None if weight.scale is None else weight.scale[first::2].contiguous()
    return QuantizedWeight(weight.data[first::2].contiguous(), scale)


def _stacks(checkpoint: Checkpoint, spec: ModelSpec, layer: LayerId) -> list[_Stack]:
    gate_up, down = (spec.expert_tensor(layer, ExpertId(0), projection) for projection in ("gate", "down"))
    weight_format, shape = stacked_format(checkpoint, spec, layer), spec.expert
    bias_dtype = "F32" if weight_format is WeightFormat.F32 else "BF16"
    biases = [
        _Stack(f"{gate_up}_bias", bias_dtype, (2 * shape.inter,)),
        _Stack(f"{down}_bias", bias_dtype, (shape.hidden,)),
    ]
    if weight_format is not WeightFormat.MXFP4:
        dtype = weight_format.name
        plain = (shape.hidden, 2 * shape.inter), (shape.inter, shape.hidden)
        return [_Stack(gate_up, dtype, plain[0]), _Stack(down, dtype, plain[1]), *biases]
    return [*_packed(gate_up, 2 * shape.inter, shape.hidden), *_packed(down, shape.hidden, shape.inter), *biases]


def _packed(name: str, rows: int, columns: int) -> list[_Stack]:
    """Blocks and scales of one tensor.

    Raises:
        CheckpointError: widths that are no multiple of 32; the published layout has no place for a ragged group.
    """
    if columns % GROUP:
        raise CheckpointError("config.json", name, f"a width of {columns}, which is no multiple of {GROUP}")
    groups = columns // GROUP
    return [
        _Stack(name + BLOCKS, "U8", (rows, groups, GROUP // 2)),
        _Stack(f"{name}_scales", "U8", (rows, groups)),
    ]
