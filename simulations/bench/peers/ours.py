"""Our kernels as a member, through the same back end as a node. Variant: a weight format's name."""

from collections.abc import Callable

import torch

from shoal.experts.cpu_backend import CpuBackend
from shoal.experts.specs import ExpertSpec
from shoal.experts.weight_formats import dequantize_expert, quantize_expert
from shoal.kernels.cpu import CpuKernels
from shoal.protocol.messages import Rounding, WeightFormat
from shoal.simulations.bench.peers.worker import HIDDEN, INTER, Floats, Task, num_copies, serve

SPEC = ExpertSpec(HIDDEN, INTER)


class Ours:
    """`num_copies` packed experts of one format."""

    def __init__(self, task: Task) -> None:
        weight_format = WeightFormat[task.variant.upper()]
        self._backend = CpuBackend(CpuKernels(task.threads))
        torch.set_num_threads(1)  # quantizing beside other processes is ten times slower with more
        weights = {name: torch.from_numpy(values) for name, values in task.weights.items()}
        self._stored = quantize_expert(weights, weight_format, "benchmark")
        count = num_copies(self._backend.resident_bytes(SPEC, weight_format))
        self._experts = [self._backend.pack(SPEC, self._stored) for _ in range(count)]
        self._y = torch.empty(0)

    @property
    def about(self) -> str:
        return self._backend.name

    @property
    def held(self) -> dict[str, Floats]:
        return {name: values.numpy() for name, values in dequantize_expert(SPEC, self._stored).items()}

    def prepare(self, x: Floats) -> Callable[[int], None]:
        rows, count = torch.from_numpy(x).bfloat16(), len(x)
        row_idx, topk_weights = torch.arange(count), torch.ones(count)

        def call(i: int) -> None:
            expert = self._experts[i % len(self._experts)]
            self._y = self._backend.run([expert], rows, row_idx, (0, count), topk_weights, Rounding.BF16)

        return call

    def output(self) -> Floats:
        result: Floats = self._y.numpy()
        return result


if __name__ == "__main__":
    serve(Ours)
