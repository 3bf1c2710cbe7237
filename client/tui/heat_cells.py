"""From replica counts to the cells of a map: how much fits, which experts share a cell, how a count is drawn. Pure.

A cell shows the fewest replicas of what it stands for, because the weakest expert decides whether a layer can answer.
Counts are told by colour AND by sign, so that nobody needs to see colours.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shoal.protocol.ids import ExpertId, LayerId

GLYPHS = "×.:+#"
"""Signs of 0, 1, 2, 3 and more replicas; they grow darker."""

MAX_SHADE = len(GLYPHS) - 1

MAX_CELL_WIDTH = 4
"""Columns of a cell where there is room: wider ones look like bars."""

MAX_CELL_HEIGHT = 3
"""Lines of one, the half line between two of them included."""


def glyph(count: int) -> str:
    """The sign of a replica count."""
    return GLYPHS[min(count, MAX_SHADE)]


def digit(count: int) -> str:
    """A replica count in one character."""
    return str(count) if count <= 9 else "9"


@dataclass(frozen=True, slots=True)
class Grid:
    """How a model's layers and experts are laid out in `width` x `height` characters."""

    num_layers: int
    num_experts: int
    layers_per_row: int
    """Layers that share a line of cells; 1 where there is room."""
    experts_per_cell: int
    cell_width: int
    """Characters of a cell."""
    cell_height: int
    """Lines of a cell, where layers are few; else 1, or 0 for half a line: two lines of cells share a character."""

    @property
    def num_columns(self) -> int:
        return math.ceil(self.num_experts / self.experts_per_cell)

    @property
    def num_rows(self) -> int:
        """Lines of cells."""
        return math.ceil(self.num_layers / self.layers_per_row)

    def layers_of(self, row: int) -> range:
        """Positions of the layers in a line of cells."""
        start = row * self.layers_per_row
        return range(start, min(start + self.layers_per_row, self.num_layers))

    def experts_of(self, column: int) -> range:
        start = column * self.experts_per_cell
        return range(start, min(start + self.experts_per_cell, self.num_experts))


def fit(num_layers: int, num_experts: int, width: int, height: int, allows_halves: bool) -> Grid:
    """The finest grid that fits. width, height: characters, at least 1; allows_halves: two lines of cells per line."""
    experts_per_cell = math.ceil(num_experts / width) or 1
    num_columns = math.ceil(num_experts / experts_per_cell) or 1
    cell_width = max(1, min(MAX_CELL_WIDTH, width // num_columns))
    if num_layers <= height:
        cell_height = max(1, min(MAX_CELL_HEIGHT, height // max(1, num_layers)))
        return Grid(num_layers, num_experts, 1, experts_per_cell, cell_width, cell_height)
    lines = 2 * height if allows_halves else height
    layers_per_row = math.ceil(num_layers / lines)
    return Grid(num_layers, num_experts, layers_per_row, experts_per_cell, cell_width, 0 if allows_halves else 1)


def cells(coverage: Mapping[LayerId, Mapping[ExpertId, int]], grid: Grid) -> list[list[int]]:
    """The fewest replicas by line and column of a grid."""
    rows = [list(replicas.values()) for replicas in coverage.values()]
    return [
        [_fewest(rows, grid.layers_of(row), grid.experts_of(column)) for column in range(grid.num_columns)]
        for row in range(grid.num_rows)
    ]


def _fewest(rows: Sequence[Sequence[int]], layers: range, experts: range) -> int:
    return min(min(rows[layer][experts.start : experts.stop]) for layer in layers)
