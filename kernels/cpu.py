"""The C++ kernels (csrc/) on torch tensors: pack a matrix once, then run calls of several experts on a pool of threads.

Arithmetic and arguments are those of `reference.grouped_swiglu`, which tests hold it to; weights stay in their stored
format. Numbers only, as that module. Knows no layers, no peers, no checkpoints.
"""

import importlib
from collections.abc import Sequence
from enum import IntEnum, StrEnum
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from shoal.kernels.activation import SILU, Activation
from shoal.kernels.reference import Biases
from shoal.kernels.scale_search import Grid

if TYPE_CHECKING:
    from shoal.kernels import _native

MAX_THREADS = 1024
"""More than any machine has cores; each takes 320 KB, or 650 KB with tiles."""

PANEL_ROWS = 64
"""Rows that the kernels take at a time (csrc/layout.h): a matrix is padded to a multiple of them."""


class Format(IntEnum):
    """How a weight is stored: the numbers of the wire's `WeightFormat` and of csrc/layout.h."""

    FP8_BLOCK = 1
    BF16 = 2
    F32 = 3
    INT8_G128 = 4
    INT4_G32 = 5
    INT4_G128 = 6
    MXFP4 = 7


class Isa(StrEnum):
    """A path through the kernels, by the instructions that it needs."""

    PORTABLE = "portable"
    AVX2 = "avx2"
    """AVX2, FMA, F16C: fp32 arithmetic."""
    AVX512 = "avx512"
    """AVX-512 F, BW, VL, DQ: fp32 arithmetic."""
    AVX512_BF16 = "avx512_bf16"
    """Also BF16 and VBMI: bf16 dot products in rounding 1, fp32 in rounding 0 and for f32 weights."""
    AMX = "amx"
    """Also AMX tiles, where the system permits them: for bf16 products, which is rounding 1 in all formats but f32."""
    AMX_EMULATED = "amx_emulated"
    """The loops of AMX on tiles of plain C++: runs everywhere, slowly, for tests. Never chosen unless it is named."""


DATA_DTYPES = {
    Format.FP8_BLOCK: torch.float8_e4m3fn,
    Format.BF16: torch.bfloat16,
    Format.F32: torch.float32,
    Format.INT8_G128: torch.int8,
    Format.INT4_G32: torch.uint8,
    Format.INT4_G128: torch.uint8,
    Format.MXFP4: torch.uint8,
}
"""dtype of `data`. 4-bit formats hold two columns a byte, the low nibble first."""

SCALE_DTYPES = {
    Format.FP8_BLOCK: torch.float32,
    Format.INT8_G128: torch.bfloat16,
    Format.INT4_G32: torch.bfloat16,
    Format.INT4_G128: torch.bfloat16,
    Format.MXFP4: torch.uint8,
}
"""dtype of `scale`, for the formats that have one."""

OFFSET_TO_TWOS_COMPLEMENT = 0x88
"""Turns two stored nibbles n, which mean n - 8, into the two's complement that csrc/ shifts into place."""

PackedArray: TypeAlias = NDArray[np.uint8]

_BITS = {1: torch.uint8, 2: torch.uint16, 4: torch.float32}


def is_available() -> bool:
    """Whether the extension was built and loads."""
    return _load() is not None


def available_isas() -> tuple[Isa, ...]:
    """The paths that this processor can run and the system permits, the fastest last; never `AMX_EMULATED`.

    Raises:
        RuntimeError: the extension is not there.
    """
    return tuple(Isa(name) for name in _module().features())


def packed_bytes(weight_format: Format, rows: int, columns: int) -> int:
    """Memory that a packed matrix takes, in bytes: its stored size, rows padded to 64 and columns to 128.

    Raises:
        RuntimeError: the extension is not there. ValueError: a size below 1 or above 2^20.
    """
    size: int = _module().packed_bytes(int(weight_format), rows, columns)
    return size


def packing_version() -> int:
    """Changes with every change of where a packed byte lies; the same on every path.

    Raises:
        RuntimeError: the extension is not there.
    """
    version: int = _module().PACKING_VERSION
    return version


def bias_bytes(inter: int, hidden: int) -> int:
    """Memory that an expert's three biases take, in bytes: fp32, padded to 64."""
    return 4 * sum(-(-rows // PANEL_ROWS) * PANEL_ROWS for rows in (inter, inter, hidden))


def quantize_groups(
    weight: torch.Tensor, group_size: int, grid: Grid, isa: Isa | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `scale_search.quantize_groups`, the same bytes on every path, with one thread. `isa` None: the fastest.

    weight: f32[out, in], contiguous, as `scale_search.check_weight` wants it. group_size: 32 or 128.
    Returns codes: i8[out, in] and scales: f32[out, ceil(in / group_size)].

    Raises:
        ValueError: another dtype, shape, stride or group size. RuntimeError: the extension is not there.
    """
    _check_dtype("weight", weight, torch.float32)
    codes = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty((weight.shape[0], -(-weight.shape[-1] // group_size)))
    numbers = (grid.low, grid.high, grid.scale_bits, grid.num_steps, grid.is_signed)
    path = isa or available_isas()[-1]
    _module().quantize_groups(path.value, weight.detach().numpy(), group_size, numbers, codes.numpy(), scales.numpy())
    return codes, scales


class PackedMatrix:
    """A weight W[rows, columns] in the layout of csrc/layout.h, in memory of its own."""

    def __init__(
        self, weight_format: Format, rows: int, columns: int, data: torch.Tensor, scale: torch.Tensor | None
    ) -> None:
        """Pack `data` of dtype `DATA_DTYPES[format]` and `scale` of `SCALE_DTYPES[format]`, both contiguous.

        fp8_block: e4m3[rows, columns], f32[ceil(rows/128), ceil(columns/128)] · bf16, f32: [rows, columns], None ·
        int8 and int4: as `int_groups.py` stores them · mxfp4: as `mxfp4.py` does, scales as bytes. W = data * scale.

        Raises:
            ValueError: a shape, dtype or stride that does not fit, or a value that is not finite.
            RuntimeError: the extension is not there.
        """
        _check_dtype("data", data, DATA_DTYPES[weight_format])
        if scale is not None:
            _check_dtype("scale", scale, SCALE_DTYPES.get(weight_format))
        if weight_format in (Format.INT4_G32, Format.INT4_G128):
            data = data ^ OFFSET_TO_TWOS_COMPLEMENT
        bits = None if scale is None else _bits(scale)
        self.native: _native.Matrix = _module().pack(int(weight_format), rows, columns, _bits(data), bits)

    @classmethod
    def over(
        cls, weight_format: Format, rows: int, columns: int, codes: PackedArray, scales: PackedArray | None
    ) -> "PackedMatrix":
        """One that was packed before, by this `packing_version`: `bytes` of it, in memory that may be a mapped file's.

        Nothing is copied or looked at; the arrays are kept as long as the matrix. codes, scales: u8[n].

        Raises:
            ValueError: not the sizes of this shape, or not on a cache line's boundary. RuntimeError: no extension.
        """
        matrix = cls.__new__(cls)
        matrix.native = _module().packed(int(weight_format), rows, columns, codes, scales)
        return matrix

    @property
    def bytes(self) -> tuple[PackedArray, PackedArray | None]:
        """Codes and scales as they lie in memory, not copied."""
        return self.native.codes, self.native.scales

    @property
    def size_bytes(self) -> int:
        return self.native.size_bytes


class PackedSwiGLU:
    """One expert: gate and up [inter, hidden], down [hidden, inter], of one format, and what stands between them."""

    def __init__(
        self,
        gate: PackedMatrix,
        up: PackedMatrix,
        down: PackedMatrix,
        activation: Activation = SILU,
        biases: Biases | None = None,
    ) -> None:
        """`biases` are copied.

        Raises:
            ValueError: a bias of another shape, dtype or stride than `Biases` says, or one that is not finite.
            RuntimeError: the extension is not there.
        """
        self.matrices = (gate, up, down)
        numbers = (activation.limit, activation.alpha, activation.up_offset)
        arrays = None if biases is None else _bias_bits(biases)
        self.native: _native.Expert = _module().expert(gate.native, up.native, down.native, numbers, arrays)
        self.size_bytes = gate.size_bytes + up.size_bytes + down.size_bytes
        if biases is not None:
            self.size_bytes += bias_bytes(gate.native.rows, down.native.rows)


class CpuKernels:
    """Threads that run calls; they sleep in between. Calls from several threads wait for one another."""

    def __init__(self, threads: int, isa: Isa | None = None) -> None:
        """`threads`: 1..1024, the caller included. `isa` None: the fastest that the processor has.

        Raises:
            ValueError: no such number of threads, or a path that this processor does not have.
            RuntimeError: the extension is not there.
        """
        self.isa = isa or available_isas()[-1]
        self._runner: _native.Runner = _module().runner(self.isa.value, threads)

    @property
    def threads(self) -> int:
        return self._runner.threads

    def grouped_swiglu(
        self,
        experts: Sequence[PackedSwiGLU],
        x: torch.Tensor,
        row_idx: torch.Tensor,
        offsets: Sequence[int],
        topk_weights: torch.Tensor,
        *,
        is_rounded: bool,
    ) -> torch.Tensor:
        """As `reference.grouped_swiglu`: f32[T, H] of x: f32|bf16[T, H], row_idx: i64[P], topk_weights: f32[P].

        Error against it, relative L2: 1e-6 in rounding 0; 5e-3 in rounding 1, where sums in another order round
        otherwise to bf16 (as between any two machines).

        Raises:
            ValueError: shapes, dtypes, strides, indices or offsets that contradict each other. TypeError: no CPU
                tensor.
        """
        y = torch.empty(x.shape, dtype=torch.float32)
        self._runner.run(
            [expert.native for expert in experts], _bits(x), row_idx.numpy(), list(offsets),
            topk_weights.detach().numpy(),
            int(is_rounded), y.numpy(),
        )  # fmt: skip
        return y

    def linear(
        self, matrix: PackedMatrix, x: torch.Tensor, *, is_rounded: bool, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """x W^T: dtype[T, rows] of x: f32|bf16[T, columns]. `is_rounded`: x as bf16; sums stay fp32.

        dtype: float32, or bfloat16 to which the sums are rounded in the end.

        Raises:
            ValueError: x does not fit the matrix, or another dtype.
        """
        y = torch.empty((x.shape[0], matrix.native.rows), dtype=dtype)
        self._runner.linear(matrix.native, _bits(x), 1, int(is_rounded), _bits(y))
        return y

    def grouped_linear(
        self, matrix: PackedMatrix, x: torch.Tensor, *, is_rounded: bool, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """x[g] W[g]^T for every group g: dtype[G, T, rows / G] of x: f32|bf16[G, T, columns], in one call.

        W[g] is the g-th of G equal parts of the matrix's rows, each a multiple of 64 (for fp8_block, of its block of
        128, or scales would be shared). For maps too small to be worth a call each, such as one per attention head.

        Raises:
            ValueError: x does not fit the matrix, or groups of another size.
        """
        num_groups, num_rows, columns = x.shape
        width = matrix.native.rows // max(num_groups, 1)
        y = torch.empty((num_groups, num_rows, width), dtype=dtype)
        flat = x.reshape(num_groups * num_rows, columns).contiguous()
        self._runner.linear(matrix.native, _bits(flat), num_groups, int(is_rounded), _bits(y.view(-1, width)))
        return y

    def probe_read(self, size_bytes: int) -> float:
        """Bytes per second that the threads read from a buffer of `size_bytes`: the best of several, for benchmarks."""
        return self._runner.probe_read(size_bytes)

    def probe_multiply(self) -> float:
        """Multiply-adds in registers, in operations per second: the limit of this path's arithmetic."""
        return self._runner.probe_multiply()


def _bits(tensor: torch.Tensor) -> "_native.Array":
    """The tensor's memory as numbers that numpy has: bf16 as uint16, fp8 as uint8."""
    if tensor.dtype is torch.float32:  # two calls per linear map of a trunk: the rest would cost each 2 µs
        return tensor.detach().numpy()
    plain = _BITS.get(tensor.element_size())
    if plain is None or tensor.is_complex():
        raise ValueError(f"{tensor.dtype} is nothing that the kernels read")
    if tensor.dtype is torch.float16 or tensor.dtype is torch.int32:
        raise ValueError(f"{tensor.dtype} is not float32 or bfloat16")
    array: _native.Array = tensor.detach().view(plain).numpy()
    return array


def _bias_bits(biases: Biases) -> "tuple[_native.Array, _native.Array, _native.Array]":
    for name, bias in biases._asdict().items():
        _check_dtype(f"{name}_bias", bias, torch.float32)
    return _bits(biases.gate), _bits(biases.up), _bits(biases.down)


def _check_dtype(name: str, tensor: torch.Tensor, expected: torch.dtype | None) -> None:
    if tensor.dtype is not expected:
        raise ValueError(f"{name} is {tensor.dtype}, expected {expected or 'none: this format has no scales'}")


def _module() -> ModuleType:
    module = _load()
    if module is None:
        raise RuntimeError("shoal was installed without its C++ kernels")
    return module


@cache
def _load() -> ModuleType | None:
    try:
        return importlib.import_module("shoal.kernels._native")
    except ImportError:
        return None
