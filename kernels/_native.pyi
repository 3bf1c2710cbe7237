"""What csrc/native.cpp offers. Only `kernels/cpu.py` uses it."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.generic]

PACKING_VERSION: int

class Matrix:
    @property
    def format(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def codes(self) -> NDArray[np.uint8]: ...
    @property
    def scales(self) -> NDArray[np.uint8] | None: ...

class Expert: ...

class Runner:
    @property
    def threads(self) -> int: ...
    def run(
        self,
        experts: Sequence[Expert],
        x: Array,
        row_idx: Array,
        offsets: Sequence[int],
        topk_weights: Array,
        rounding: int,
        y: NDArray[np.float32],
    ) -> None: ...
    def probe_read(self, num_bytes: int) -> float: ...
    def probe_multiply(self) -> float: ...
    def linear(self, matrix: Matrix, x: Array, num_groups: int, rounding: int, y: Array) -> None: ...

def features() -> list[str]: ...
def runner(isa: str, threads: int) -> Runner: ...
def pack(format: int, rows: int, columns: int, data: Array, scale: Array | None) -> Matrix: ...
def packed(format: int, rows: int, columns: int, codes: Array, scales: Array | None) -> Matrix: ...
def quantize_groups(
    isa: str,
    weight: Array,
    group: int,
    grid: tuple[int, int, int, int, bool],
    codes: NDArray[np.int8],
    scales: NDArray[np.float32],
) -> None: ...
def packed_bytes(format: int, rows: int, columns: int) -> int: ...
def expert(
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    activation: tuple[float, float, float],
    biases: tuple[Array, Array, Array] | None,
) -> Expert: ...
