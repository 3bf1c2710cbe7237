"""A matrix over somebody else's memory is the matrix that it was packed as, or is refused."""

import gc

import numpy as np
import pytest
import torch

from shoal.kernels import cpu
from shoal.kernels.cpu import CpuKernels, Format, PackedArray, PackedMatrix

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason="needs the C++ kernels")

ROWS, COLUMNS = 100, 200


def matrix() -> PackedMatrix:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn((ROWS, COLUMNS), generator=generator).to(torch.float8_e4m3fn)
    return PackedMatrix(Format.FP8_BLOCK, ROWS, COLUMNS, codes, torch.ones((1, 2)))


def aligned(array: PackedArray, offset: int = 0) -> PackedArray:
    """A copy that begins `offset` bytes behind a page's boundary."""
    memory = np.zeros(array.nbytes + 8192, np.uint8)
    begin = -memory.ctypes.data % 4096 + offset
    memory[begin : begin + array.nbytes] = array
    return memory[begin : begin + array.nbytes]


def test_a_matrix_over_copied_bytes_multiplies_to_the_same_bits_and_keeps_its_memory() -> None:
    packed, kernels = matrix(), CpuKernels(1)
    codes, scales = packed.bytes
    assert scales is not None
    assert codes.nbytes + scales.nbytes == packed.size_bytes
    over = PackedMatrix.over(Format.FP8_BLOCK, ROWS, COLUMNS, aligned(codes), aligned(scales))
    x = torch.randn((3, COLUMNS), generator=torch.Generator().manual_seed(1))
    expected = kernels.linear(packed, x, is_rounded=True)
    del packed, codes, scales
    gc.collect()
    assert torch.equal(kernels.linear(over, x, is_rounded=True), expected)
    assert over.size_bytes == sum(array.nbytes for array in over.bytes if array is not None)


def test_bytes_of_a_matrix_live_as_long_as_somebody_looks_at_them() -> None:
    codes, _ = matrix().bytes
    gc.collect()
    assert np.array_equal(codes, matrix().bytes[0])


def test_bytes_that_do_not_fit_the_shape_or_the_kernels_are_refused() -> None:
    codes, scales = matrix().bytes
    assert scales is not None
    for wrong_codes, wrong_scales in ((codes[:-64], scales), (codes, scales[:-4]), (codes, None)):
        with pytest.raises(ValueError, match="not the bytes of such a matrix"):
            PackedMatrix.over(Format.FP8_BLOCK, ROWS, COLUMNS, wrong_codes, wrong_scales)
    with pytest.raises(ValueError, match="cache line"):
        PackedMatrix.over(Format.FP8_BLOCK, ROWS, COLUMNS, aligned(codes, 4), aligned(scales))
    with pytest.raises(ValueError, match="no bytes"):
        PackedMatrix.over(Format.FP8_BLOCK, ROWS, COLUMNS, codes.view(np.float32), scales)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not contiguous"):
        PackedMatrix.over(Format.FP8_BLOCK, ROWS, COLUMNS, codes[::2], scales)
    with pytest.raises(ValueError, match="a matrix of"):
        PackedMatrix.over(Format.FP8_BLOCK, 0, COLUMNS, codes, scales)


def test_formats_without_scales_have_none() -> None:
    plain = PackedMatrix(Format.F32, ROWS, COLUMNS, torch.ones((ROWS, COLUMNS)), None)
    codes, scales = plain.bytes
    assert scales is None
    over = PackedMatrix.over(Format.F32, ROWS, COLUMNS, aligned(codes), None)
    x = torch.ones((1, COLUMNS))
    assert torch.equal(CpuKernels(1).linear(over, x, is_rounded=False), torch.full((1, ROWS), float(COLUMNS)))
