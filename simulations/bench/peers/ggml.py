"""ggml (llama.cpp) as a member, by ctypes on its own shared libraries. Variant: `TYPE-OPERATION[-repack]`.

Operations: `mul_mat_id` is how llama.cpp runs experts; `mul_mat` is a plain product with one weight, which may be
faster. `repack` keeps weights in ggml's CPU_REPACK buffers. Weights are quantized by `ggml_quantize_chunk` without an
importance matrix. Licence: MIT. `environments.py` builds the libraries from llama-cpp-python's source distribution.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shoal.simulations.bench.peers.ggml_library import F32, I32, TYPES, Ggml, InitParams
from shoal.simulations.bench.peers.worker import HIDDEN, SHAPES, Floats, Task, num_copies, serve

LIBRARIES = "SHOAL_GGML_LIBRARIES"
"""Environment variable: the folder of libggml*.so."""

CONTEXT_BYTES = 1 << 20
"""Room for the descriptions of tensors and a graph; numbers are elsewhere."""

Bytes = npt.NDArray[np.uint8]


class GgmlExperts:
    """Experts as tensors of their own (`mul_mat`) or stacked in one (`mul_mat_id`), and a graph for each."""

    def __init__(self, task: Task) -> None:
        kind, operation, *rest = task.variant.split("-")
        self._ggml, self._type, self._is_stacked = Ggml(_libraries()), TYPES[kind], operation == "mul_mat_id"
        self._backend = self._ggml.cpu_init()
        self._ggml.set_threads(self._backend, task.threads)
        stored = {name: self._quantize(values) for name, values in task.weights.items()}
        self.held = {name: self._dequantize(stored[name], SHAPES[name]) for name in stored}
        self._count = num_copies(sum(data.nbytes for data in stored.values()))
        self._weights = self._place(stored, self._ggml.repack_buffers() if rest else self._ggml.cpu_buffers())
        self._allocator = self._ggml.graph_allocator(self._ggml.cpu_buffers())
        self._contexts: list[int] = []
        self._result, self._shape = 0, (0, 0)

    @property
    def about(self) -> str:
        return f"ggml {self._ggml.version}"

    def prepare(self, x: Floats) -> Callable[[int], None]:
        for context in self._contexts:
            self._ggml.free(context)
        context, rows, ids = self._inputs(x)
        self._contexts, self._shape = [context], x.shape
        # graphs of one shape, allocated one after another, share the allocator's one buffer: they never run together
        graphs = [self._graph(rows, ids[i % len(ids)], i) for i in range(self._count)]

        def call(i: int) -> None:
            graph, self._result = graphs[i % self._count]
            if status := self._ggml.compute(self._backend, graph):
                raise RuntimeError(f"ggml_backend_graph_compute returned {status}")

        return call

    def output(self) -> Floats:
        y = np.empty(self._shape, dtype=np.float32)
        self._ggml.get(self._result, y.ctypes.data, 0, y.nbytes)
        return y

    def _quantize(self, values: Floats) -> Bytes:
        rows, columns = values.shape
        data = np.empty(rows * self._ggml.row_size(self._type, columns), dtype=np.uint8)
        self._ggml.quantize(self._type, values.ctypes.data, data.ctypes.data, 0, rows, columns, None)
        return data

    def _dequantize(self, data: Bytes, shape: tuple[int, int]) -> Floats:
        values = np.empty(shape, dtype=np.float32)
        self._ggml.to_float(self._type, data.ctypes.data, values.ctypes.data, values.size)
        return values

    def _place(self, stored: dict[str, Bytes], buffers: int) -> dict[str, list[int]]:
        """Tensors by projection: one of all experts, or one for each. Repacking wants each set at once."""
        ggml, depth = self._ggml, self._count if self._is_stacked else 1
        context = ggml.init(InitParams(CONTEXT_BYTES, None, True))
        tensors = {
            name: [ggml.tensor(context, self._type, columns, rows, depth) for _ in range(self._count // depth)]
            for name, (rows, columns) in SHAPES.items()
        }
        if not ggml.alloc(context, buffers):
            raise RuntimeError("ggml could not allocate its weights")
        for name, data in stored.items():
            whole = np.tile(data, depth)
            for tensor in tensors[name]:
                ggml.set(tensor, whole.ctypes.data, 0, whole.nbytes)
        return tensors

    def _inputs(self, x: Floats) -> tuple[int, int, list[int]]:
        """A context with x, and for stacked weights the expert's number for every row, by expert."""
        ggml, count = self._ggml, len(x)
        context = ggml.init(InitParams(CONTEXT_BYTES, None, True))
        shape = (HIDDEN, 1, count) if self._is_stacked else (HIDDEN, count, 1)
        rows = ggml.tensor(context, F32, *shape)
        ids = [ggml.tensor(context, I32, 1, count, 1) for _ in range(self._count if self._is_stacked else 1)]
        ggml.alloc(context, ggml.cpu_buffers())  # lives until the process ends
        ggml.set(rows, x.ctypes.data, 0, x.nbytes)
        for number, tensor in enumerate(ids):
            numbers = np.full(count, number, dtype=np.int32)
            ggml.set(tensor, numbers.ctypes.data, 0, numbers.nbytes)
        return context, rows, ids

    def _graph(self, rows: int, ids: int, expert: int) -> tuple[int, int]:
        """The graph of one expert, and the tensor of its result."""
        ggml = self._ggml
        context = ggml.init(InitParams(CONTEXT_BYTES, None, True))
        self._contexts.append(context)

        def product(name: str, values: int) -> int:
            if self._is_stacked:
                return ggml.mul_mat_id(context, self._weights[name][0], values, ids)
            return ggml.mul_mat(context, self._weights[name][expert], values)

        result = product("down", ggml.swiglu(context, product("gate", rows), product("up", rows)))
        graph = ggml.new_graph(context)
        ggml.expand(graph, result)
        if not ggml.alloc_graph(self._allocator, graph):
            raise RuntimeError("ggml could not allocate its graph")
        return graph, result


def _libraries() -> Path:
    return Path(os.environ[LIBRARIES])


if __name__ == "__main__":
    serve(GgmlExperts)
