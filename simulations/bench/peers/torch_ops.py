"""torch's own ways to run an expert on a CPU as members; the baseline of all ratios is variant `bf16`.

`bf16`: oneDNN with weights reordered at load. `int8pack`: `_weight_int8pack_mm`, int8 by row, bf16 rows. `int8dynamic`:
`_int_mm`, int8 by row, rows quantized to int8 at every call. `int4pack`: `_weight_int4pack_mm_for_cpu`, groups of 128
with scale and zero point. torch is a dependency of shoal, these private operators are not. Licence: BSD-3-Clause.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import silu

from shoal.simulations.bench.peers.worker import Floats, Task, num_copies, serve

INT4_GROUP = 128

Linear = Callable[[Tensor], Tensor]
"""bf16[T, in] -> bf16[T, out]."""


class Packed:
    """A weight of a variant: what it means, its bytes, and how a fresh copy of it is applied."""

    def __init__(self, held: Tensor, size_bytes: int, copy: Callable[[], Linear]) -> None:
        self.held, self.size_bytes, self.copy = held, size_bytes, copy


def bf16(weight: Tensor) -> Packed:
    """As `shoal bench kernels` does."""
    rounded = weight.bfloat16()

    def copy() -> Linear:
        packed = torch.ops.mkldnn._reorder_linear_weight(rounded)

        def linear(x: Tensor) -> Tensor:
            result: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
            return result

        return linear

    return Packed(rounded.float(), rounded.nbytes, copy)


def int8pack(weight: Tensor) -> Packed:
    """Weights as int8 with a bf16 scale by row."""
    codes, scale = _int8_rows(weight)
    bf16_scale = scale.bfloat16()

    def copy() -> Linear:
        packed = codes.clone()
        return lambda x: torch.ops.aten._weight_int8pack_mm(x, packed, bf16_scale)

    return Packed(codes.float() * bf16_scale.float()[:, None], codes.nbytes, copy)


def int8dynamic(weight: Tensor) -> Packed:
    """Weights and rows as int8, products in int32, scales afterwards."""
    codes, scale = _int8_rows(weight)

    def copy() -> Linear:
        packed = codes.clone().t()

        def linear(x: Tensor) -> Tensor:
            rows, row_scale = _int8_rows(x.float())
            return (torch._int_mm(rows, packed) * row_scale[:, None] * scale).bfloat16()

        return linear

    return Packed(codes.float() * scale[:, None], codes.nbytes, copy)


def int4pack(weight: Tensor) -> Packed:
    """Codes 0..15 with bf16 scale and zero by group: W = (code - 8) * scale + zero."""
    groups = weight.view(-1, INT4_GROUP)
    low, high = groups.aminmax(dim=1, keepdim=True)
    scale = ((high - low) / 15).bfloat16().float()
    zero = (low + 8 * scale).bfloat16().float()
    codes = ((groups - zero) / scale).round().add(8).clamp(0, 15)
    held = ((codes - 8) * scale + zero).view(weight.shape)
    per_group = torch.stack((scale.view(len(weight), -1).t(), zero.view(len(weight), -1).t()), dim=-1)
    scales_and_zeros = per_group.bfloat16().contiguous()
    whole = codes.view(weight.shape).int()
    packed_once = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole, 1)

    def copy() -> Linear:
        packed = packed_once.clone()
        return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, INT4_GROUP, scales_and_zeros)

    return Packed(held, packed_once.nbytes + scales_and_zeros.nbytes, copy)


VARIANTS: dict[str, Callable[[Tensor], Packed]] = {
    each.__name__: each for each in (bf16, int8pack, int8dynamic, int4pack)
}


class TorchOps:
    """Copies of an expert in one variant."""

    def __init__(self, task: Task) -> None:
        torch.set_num_threads(task.threads)
        pack = VARIANTS[task.variant]
        weights = {name: pack(torch.from_numpy(values)) for name, values in task.weights.items()}
        self.held = {name: weight.held.numpy() for name, weight in weights.items()}
        count = num_copies(sum(weight.size_bytes for weight in weights.values()))
        self._experts = [[weights[name].copy() for name in ("gate", "up", "down")] for _ in range(count)]
        self._y = torch.empty(0)

    @property
    def about(self) -> str:
        return f"torch {torch.__version__}"

    def prepare(self, x: Floats) -> Callable[[int], None]:
        rows = torch.from_numpy(x).bfloat16()

        def call(i: int) -> None:
            gate, up, down = self._experts[i % len(self._experts)]
            with torch.no_grad():
                self._y = down(silu(gate(rows)) * up(rows)).float()

        return call

    def output(self) -> Floats:
        result: Floats = self._y.numpy()
        return result


def _int8_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """i8 codes and f32 scales by row."""
    scale = values.abs().amax(dim=1) / 127
    return (values / scale[:, None]).round().to(torch.int8), scale


if __name__ == "__main__":
    serve(TorchOps)
