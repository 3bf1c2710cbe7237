"""ggml's C functions that a benchmark needs, by ctypes. Signatures: ggml*.h of ggml 0.25.3 (MIT)."""

import ctypes
from collections.abc import Callable
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path

NAMES = ("ggml-base", "ggml-cpu", "ggml")
"""Shared libraries, each after those that it needs."""

TYPES = {"bf16": 30, "q8_0": 8, "q4_0": 2, "q4_K": 12, "mxfp4": 39}
"""`enum ggml_type`."""

F32, I32 = 0, 26
DEVICE_CPU = 0
"""`GGML_BACKEND_DEVICE_TYPE_CPU`."""

MAX_BUFFER_TYPES = 16

Function = Callable[..., int]
"""Pointers are integers."""


class InitParams(ctypes.Structure):
    """`struct ggml_init_params`."""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


class TypeTraits(ctypes.Structure):
    """`struct ggml_type_traits`."""

    _fields_ = (
        ("type_name", c_char_p), ("blck_size", c_int64), ("blck_size_interleave", c_int64), ("type_size", c_size_t),
        ("is_quantized", c_bool), ("to_float", c_void_p), ("from_float_ref", c_void_p),
    )  # fmt: skip


class Ggml:
    """The functions, with their types."""

    def __init__(self, folder: Path) -> None:
        base, cpu, top = (ctypes.CDLL(str(folder / f"lib{name}.so"), ctypes.RTLD_GLOBAL) for name in NAMES)
        pointer = c_void_p
        self.init = _typed(base.ggml_init, pointer, InitParams)
        self.free = _typed(base.ggml_free, None, pointer)
        self.tensor = _typed(base.ggml_new_tensor_3d, pointer, pointer, c_int, c_int64, c_int64, c_int64)
        self.mul_mat = _typed(base.ggml_mul_mat, pointer, pointer, pointer, pointer)
        self.mul_mat_id = _typed(base.ggml_mul_mat_id, pointer, pointer, pointer, pointer, pointer)
        self.swiglu = _typed(base.ggml_swiglu_split, pointer, pointer, pointer, pointer)
        self.new_graph = _typed(base.ggml_new_graph, pointer, pointer)
        self.expand = _typed(base.ggml_build_forward_expand, None, pointer, pointer)
        self.row_size = _typed(base.ggml_row_size, c_size_t, c_int, c_int64)
        sizes = (c_int64, c_int64, c_int64)
        self.quantize = _typed(base.ggml_quantize_chunk, c_size_t, c_int, pointer, pointer, *sizes, pointer)
        self.alloc = _typed(base.ggml_backend_alloc_ctx_tensors_from_buft, pointer, pointer, pointer)
        self.free_buffer = _typed(base.ggml_backend_buffer_free, None, pointer)
        self.set = _typed(base.ggml_backend_tensor_set, None, pointer, pointer, c_size_t, c_size_t)
        self.get = _typed(base.ggml_backend_tensor_get, None, pointer, pointer, c_size_t, c_size_t)
        self.compute = _typed(base.ggml_backend_graph_compute, c_int, pointer, pointer)
        self.graph_allocator = _typed(base.ggml_gallocr_new, pointer, pointer)
        self.alloc_graph = _typed(base.ggml_gallocr_alloc_graph, c_bool, pointer, pointer)
        self.cpu_buffers = _typed(cpu.ggml_backend_cpu_buffer_type, pointer)
        self.cpu_init = _typed(cpu.ggml_backend_cpu_init, pointer)
        self.set_threads = _typed(cpu.ggml_backend_cpu_set_n_threads, None, pointer, c_int)
        self._traits = _typed(base.ggml_get_type_traits, POINTER(TypeTraits), c_int)
        self._version = _typed(base.ggml_version, c_char_p)
        self._proc_address = _typed(base.ggml_backend_reg_get_proc_address, pointer, pointer, c_char_p)
        self._registry = _typed(base.ggml_backend_dev_backend_reg, pointer, pointer)
        self._buffers_name = _typed(base.ggml_backend_buft_name, c_char_p, pointer)
        self._device = _typed(top.ggml_backend_dev_by_type, pointer, c_int)

    @property
    def version(self) -> str:
        return ctypes.string_at(self._version()).decode()

    def to_float(self, ggml_type: int, data: int, into: int, count: int) -> None:
        """Dequantize `count` values."""
        traits = ctypes.cast(self._traits(ggml_type), POINTER(TypeTraits)).contents
        ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int64)(traits.to_float)(data, into, count)

    def repack_buffers(self) -> int:
        """The buffer type CPU_REPACK.

        Raises:
            RuntimeError: this build has none.
        """
        device = self._device(DEVICE_CPU)
        address = self._proc_address(self._registry(device), b"ggml_backend_dev_get_extra_bufts")
        listed = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(device)
        for index in range(MAX_BUFFER_TYPES):
            if not (found := listed[index]):
                break
            if b"REPACK" in ctypes.string_at(self._buffers_name(found)):
                return int(found)
        raise RuntimeError("this build of ggml has no CPU_REPACK buffers")


def _typed(function: "ctypes._NamedFuncPointer", result: type | None, *arguments: type) -> Function:
    """Strings come back as pointers, so that all results are integers."""
    function.restype = c_void_p if result is c_char_p or (result and issubclass(result, ctypes._Pointer)) else result
    function.argtypes = arguments
    return function
