"""A map fits its room and never hides a gap."""

from hypothesis import given
from hypothesis import strategies as st

from shoal.client.tui.heat_cells import cells, digit, fit, glyph
from shoal.protocol.ids import ExpertId, LayerId

SIDES = st.integers(1, 300)


@given(SIDES, SIDES, st.integers(1, 200), st.integers(1, 60), st.booleans())
def test_a_grid_fits_and_has_a_cell_for_everything(
    num_layers: int, num_experts: int, width: int, height: int, allows_halves: bool
) -> None:
    grid = fit(num_layers, num_experts, width, height, allows_halves)
    lines = -(-grid.num_rows // 2) if grid.cell_height == 0 else grid.num_rows * grid.cell_height
    assert grid.num_columns * grid.cell_width <= width
    assert lines <= height
    assert [layer for row in range(grid.num_rows) for layer in grid.layers_of(row)] == list(range(num_layers))
    assert [e for column in range(grid.num_columns) for e in grid.experts_of(column)] == list(range(num_experts))


@given(st.integers(0, 57), st.integers(0, 255), st.integers(20, 140), st.integers(5, 40))
def test_one_missing_expert_of_a_whole_model_is_always_seen(layer: int, expert: int, width: int, height: int) -> None:
    coverage = {LayerId(n): dict.fromkeys(map(ExpertId, range(256)), 3) for n in range(58)}
    coverage[LayerId(layer)][ExpertId(expert)] = 0
    drawn = cells(coverage, fit(58, 256, width, height, allows_halves=True))
    assert sum(count == 0 for row in drawn for count in row) == 1


def test_signs_grow_with_the_count() -> None:
    assert [glyph(count) for count in range(7)] == ["×", ".", ":", "+", "#", "#", "#"]
    assert [digit(count) for count in (0, 9, 12)] == ["0", "9", "9"]
