"""kt-kernel (ktransformers) as a member, run by an interpreter that has it. Variant: one of `CLASSES`.

Its MoE classes take all experts of a layer; a call names one of them by `expert_ids`. Licence: Apache-2.0 (wheel).
Worker threads: as many as asked for; its caller spins as well while it waits.
"""

from collections.abc import Callable
from importlib.metadata import version

import kt_kernel
import kt_kernel_ext
import numpy as np
import torch
from torch import Tensor

from shoal.simulations.bench.peers.worker import HIDDEN, INTER, SHAPES, Floats, Task, num_copies, serve

CLASSES = {
    "bf16": ("AMXBF16_MOE", 16, 0),
    "fp8": ("AMXFP8_MOE", 8, 128),
    "int8": ("AMXInt8_MOE", 8, 0),
    "int4": ("AMXInt4_MOE", 4, 0),
    "mxfp4": ("AMXFP4_KGroup_MOE", 4, 32),
}
"""Class, bits of a weight, columns of a group (0: it quantizes by itself, from bf16)."""

QUANTIZED_BY_IT = ("int8", "int4")
"""They take bf16 weights of all experts in one piece."""

MAX_ROWS = 512
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


class KTransformers:
    """One layer of experts that are all the same."""

    def __init__(self, task: Task) -> None:
        name, bits, group = CLASSES[task.variant]
        pool = kt_kernel_ext.WorkerPoolConfig()
        pool.subpool_count, pool.subpool_numa_map, pool.subpool_thread_count = 1, [0], [task.threads]
        self._infer = kt_kernel_ext.CPUInfer(pool)
        self._count = num_copies(sum(rows * columns for rows, columns in SHAPES.values()) * bits // 8)
        self._gpu_mask = torch.zeros(self._count, dtype=torch.bool)
        config = kt_kernel_ext.moe.MOEConfig(self._count, 1, HIDDEN, INTER, self._gpu_mask.data_ptr())
        config.max_len, config.pool = MAX_ROWS, self._infer.backend_
        self.held: dict[str, Floats] | None = None
        self._kept = self._give(config, task, bits, group)
        self._moe = getattr(kt_kernel_ext.moe, name)(config)
        # not a map of all experts to the first: then the others' memory is never written, and reads of it cost nothing
        each_its_own = torch.arange(self._count)
        self._infer.submit(self._moe.load_weights_task(each_its_own.data_ptr()))
        self._infer.sync()
        if task.variant in QUANTIZED_BY_IT:
            self._kept.clear()  # gigabytes of bf16
        self._y = torch.empty(0)

    @property
    def about(self) -> str:
        return f"kt-kernel {version('kt-kernel')} ({kt_kernel.__cpu_variant__}), torch {torch.__version__}"

    def prepare(self, x: Floats) -> Callable[[int], None]:
        rows, count = torch.from_numpy(x).bfloat16(), len(x)
        self._y = torch.empty(count, HIDDEN, dtype=torch.bfloat16)
        ids, weights = torch.zeros(count, 1, dtype=torch.int64), torch.ones(count, 1)
        batch = torch.tensor([count], dtype=torch.int32)

        def call(i: int) -> None:
            ids.fill_(i % self._count)
            pointers = (batch, ids, weights, rows, self._y)
            size, *rest = (tensor.data_ptr() for tensor in pointers)
            self._infer.submit(self._moe.forward_task(size, 1, *rest, False))
            self._infer.sync()

        return call

    def output(self) -> Floats:
        return self._y.float().numpy()

    def _give(self, config: object, task: Task, bits: int, group: int) -> list[Tensor]:
        """Point the configuration at weights; returns what must stay alive meanwhile."""
        kept: list[Tensor] = []
        for name, values in task.weights.items():
            data, scale, held = _store(torch.from_numpy(values), task.variant)
            kept += [data, scale]
            if held is not None:
                self.held = (self.held or {}) | {name: held.numpy()}
            if task.variant in QUANTIZED_BY_IT:
                data = data.expand(self._count, *data.shape).contiguous()
                kept.append(data)
                setattr(config, f"{name}_proj", data.data_ptr())
            else:
                setattr(config, f"{name}_projs", [[data.data_ptr()] * self._count])
                setattr(config, f"{name}_scales", [[scale.data_ptr() if scale.numel() else 0] * self._count])
        if group:
            quantization = config.quant_config  # type: ignore[attr-defined]
            quantization.bits, quantization.group_size, quantization.zero_point = bits, group, False
        return kept


def _store(weight: Tensor, variant: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Data, scales (or nothing) and, where it is known, what they mean."""
    if variant == "fp8":
        return _fp8(weight)
    if variant == "mxfp4":
        return _mxfp4(weight)
    return weight.bfloat16(), torch.empty(0), weight if variant == "bf16" else None


def _fp8(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """e4m3 with an f32 scale for 128 x 128, as DeepSeek-V3 ships it."""
    blocks = weight.view(weight.shape[0] // 128, 128, weight.shape[1] // 128, 128)
    scale = blocks.abs().amax(dim=(1, 3), keepdim=True) / 448
    codes = (blocks / scale).to(torch.float8_e4m3fn)
    held = (codes.float() * scale).view(weight.shape)
    return codes.view(weight.shape), scale.flatten(1).contiguous(), held


def _mxfp4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E2M1 nibbles, the low one first, and a power of two in bf16 for 32 columns, by the specification's rule."""
    groups = weight.view(-1, 32)
    exponent = torch.frexp(groups.abs().amax(dim=1, keepdim=True))[1] - 3
    unit = torch.ldexp(groups, -exponent)
    index = torch.bucketize(unit.abs(), (E2M1[1:] + E2M1[:-1]) / 2)
    held = torch.ldexp(E2M1[index].copysign(unit), exponent).view(weight.shape)
    codes = (index + 8 * torch.signbit(unit)).to(torch.uint8).view(weight.shape)
    scale = torch.ldexp(torch.ones(len(groups), 1), exponent).view(len(weight), -1).bfloat16()
    return codes[:, 0::2] | codes[:, 1::2] << 4, scale, held


if __name__ == "__main__":
    np.seterr(all="raise")
    serve(KTransformers)
