"""The C++ search for scales gives the bytes of its reference, on every path and whatever the weights."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.kernels import cpu
from shoal.kernels.int_groups import INT4_GRID, INT8_GRID
from shoal.kernels.scale_search import Grid, quantize_groups

if not cpu.is_available():
    pytest.skip("needs the C++ kernels, which were not built", allow_module_level=True)

GRIDS = ((INT8_GRID, 128), (INT4_GRID, 32), (INT4_GRID, 128))


def _same_bytes(weight: torch.Tensor, isa: cpu.Isa) -> bool:
    for grid, group_size in GRIDS:
        wanted, got = quantize_groups(weight, group_size, grid), cpu.quantize_groups(weight, group_size, grid, isa)
        if not all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(wanted, got, strict=True)):
            return False
    return True


@pytest.mark.parametrize("isa", cpu.available_isas())
@given(
    seed=st.integers(0, 9999),
    rows=st.integers(1, 19),
    columns=st.sampled_from([1, 2, 31, 32, 33, 127, 128, 130, 257, 544]),
    exponent=st.integers(-110, 90),
    power=st.sampled_from([1, 3]),
)
def test_every_path_gives_the_bytes_of_the_reference(
    isa: cpu.Isa, seed: int, rows: int, columns: int, exponent: int, power: int
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) ** power * 2.0**exponent
    weight[:, ::7] = 0
    assert _same_bytes(weight, isa)


@pytest.mark.parametrize("isa", cpu.available_isas())
@pytest.mark.parametrize(
    "values",
    [[0.0] * 40, [2.0**100, -(2.0**100)], [2.0**-100] * 33, [1.0] + [2.0**-60] * 31, [-0.0, 1.0], [0.5, 1.5, 2.5, 7.0]],
    ids=["zeros", "largest", "smallest", "one large", "minus zero", "ties"],
)  # fmt: skip
def test_extremes_and_ties_give_the_bytes_of_the_reference(isa: cpu.Isa, values: list[float]) -> None:
    assert _same_bytes(torch.tensor([values, values[::-1]]), isa)


@pytest.mark.parametrize(
    ("weight", "group_size", "reason"),
    [
        (torch.zeros(2, 64, dtype=torch.bfloat16), 32, "float32"),
        (torch.zeros(64, 2).T, 32, "contiguous"),
        (torch.zeros(2, 64), 64, "32 or 128"),
        (torch.zeros(2, 0), 32, "2 x 0"),
        (torch.zeros(64), 32, "float32\\[rows, columns\\]"),
    ],
)
def test_what_the_search_can_not_read_is_refused(weight: torch.Tensor, group_size: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        cpu.quantize_groups(weight, group_size, INT4_GRID)


@pytest.mark.parametrize(
    "grid",
    [Grid(0, 7, 5, 12), Grid(-8, 0, 5, 12), Grid(-8, 128, 5, 12), Grid(-200, 7, 5, 12), Grid(-8, 7, 0, 1),
     Grid(-8, 7, 9, 1), Grid(-8, 7, 5, 0), Grid(-8, 7, 5, 33)],
)  # fmt: skip
def test_a_grid_that_codes_can_not_hold_is_refused(grid: Grid) -> None:
    with pytest.raises(ValueError, match="grid"):
        cpu.quantize_groups(torch.zeros(2, 64), 32, grid)


def test_outputs_of_another_shape_are_refused() -> None:
    native = cpu._module()  # only the wrapper makes outputs, so what C++ checks is called itself
    weight, numbers = np.zeros((2, 64), np.float32), (-8, 7, 5, 12, True)
    for codes, scales in (
        (np.zeros((2, 63), np.int8), np.zeros((2, 2), np.float32)),
        (np.zeros((2, 64), np.uint8), np.zeros((2, 2), np.float32)),
        (np.zeros((2, 64), np.int8), np.zeros((2, 3), np.float32)),
        (np.zeros((2, 64), np.int8), np.zeros((2, 2), np.float64)),
    ):
        with pytest.raises(ValueError, match=r"codes|scales"):
            native.quantize_groups("portable", weight, 32, numbers, codes, scales)
