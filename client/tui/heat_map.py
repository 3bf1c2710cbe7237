"""A map of replica counts, drawn cell by cell: colours, signs or digits. Knows counts and labels, and no swarm.

Where rows are many, two of them share a line of characters (half blocks); a cell always shows its fewest replicas.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from shoal.client.translate import N_
from shoal.client.tui.heat_cells import MAX_SHADE, Grid, cells, digit, fit, glyph
from shoal.client.tui.themes import DEFAULT_THEME, HEAT
from shoal.client.tui.translated import translate_bindings
from shoal.protocol.ids import ExpertId, LayerId

LABEL_WIDTH = 6
"""Columns before the cells: a layer, or a range of them."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What the map shows: counts by row and column, and what the rows are called."""

    counts: Mapping[LayerId, Mapping[ExpertId, int]]
    labels: Sequence[str]
    first_column: int = 0
    """What the header calls the first column."""


EMPTY = Picture({}, ())


class HeatMap(Widget, can_focus=True):
    """Arrows move, Enter looks closer."""

    HELP = N_(
        "Each cell is an expert of a layer, or a few of them. Arrows move, Enter looks closer, Backspace goes back."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1, 0)", N_("Up"), id="map.up", show=False),
        Binding("down,j", "move(1, 0)", N_("Down"), id="map.down", show=False),
        Binding("left,h", "move(0, -1)", N_("Left"), id="map.left", show=False),
        Binding("right,l", "move(0, 1)", N_("Right"), id="map.right", show=False),
        Binding("enter", "choose", N_("Closer"), id="map.closer"),
    ]

    class Moved(Message):
        """The cursor stands elsewhere."""

    class Chosen(Message):
        """The user wants to look closer."""

    picture: reactive[Picture] = reactive(EMPTY)
    heat_style: reactive[str] = reactive("blocks")
    """One of preferences.HEAT_STYLES."""
    cursor: reactive[tuple[int, int]] = reactive((0, 0))
    """Row and column, in cells."""

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._grid: Grid | None = None
        self._cells: list[list[int]] = []
        translate_bindings(self)

    def on_resize(self) -> None:
        self._lay_out()

    def watch_picture(self) -> None:
        self._lay_out()

    def watch_heat_style(self) -> None:
        self._lay_out()

    def watch_cursor(self) -> None:
        self.post_message(self.Moved())

    def cursor_rows(self) -> range:
        """Positions of the rows under the cursor."""
        return self._grid.layers_of(self.cursor[0]) if self._grid else range(0)

    def cursor_columns(self) -> range:
        """Positions of the columns under the cursor."""
        return self._grid.experts_of(self.cursor[1]) if self._grid else range(0)

    def action_move(self, rows: int, columns: int) -> None:
        if self._grid is not None:
            row = max(0, min(self._grid.num_rows - 1, self.cursor[0] + rows))
            column = max(0, min(self._grid.num_columns - 1, self.cursor[1] + columns))
            self.cursor = (row, column)

    def action_choose(self) -> None:
        self.post_message(self.Chosen())

    def _lay_out(self) -> None:
        width, height = self.size.width - LABEL_WIDTH, self.size.height - 1
        if not self.picture.counts or width < 1 or height < 1:
            self._grid, self._cells = None, []
        else:
            rows = list(self.picture.counts.values())
            num_columns = max(len(row) for row in rows)
            self._grid = fit(len(rows), num_columns, width, height, self.heat_style == "blocks")
            self._cells = cells(self.picture.counts, self._grid)
            self.action_move(0, 0)
        self.refresh()

    def render_line(self, y: int) -> Strip:
        grid = self._grid
        base = self.rich_style
        if grid is None:
            return Strip.blank(self.size.width, base)
        if y == 0:
            return self._header(grid, base)
        line = y - 1
        if grid.cell_height == 0:
            segments = self._halves(grid, line, base)
        else:
            row, part = divmod(line, grid.cell_height)
            segments = self._row(grid, row, part, base) if row < grid.num_rows else []
        return Strip(segments).adjust_cell_length(self.size.width, base)

    def _header(self, grid: Grid, base: Style) -> Strip:
        """Column numbers, as often as they fit."""
        every = max(1, -(-8 // grid.cell_width))
        words = " " * LABEL_WIDTH
        for column in range(0, grid.num_columns, every):
            at = LABEL_WIDTH + column * grid.cell_width
            words = words.ljust(at) + str(self.picture.first_column + grid.experts_of(column).start)
        muted = base + Style(color=self._muted())
        return Strip([Segment(words, muted)]).adjust_cell_length(self.size.width, base)

    def _row(self, grid: Grid, row: int, part: int, base: Style) -> list[Segment]:
        """One line of cells that are at least one character high."""
        label = self._label(grid, row) if part == (grid.cell_height - 1) // 2 else ""
        segments = [Segment(label.ljust(LABEL_WIDTH), base + Style(color=self._muted()))]
        for column, count in enumerate(self._cells[row]):
            is_cursor = (row, column) == self.cursor and self.has_focus
            segments += self._cell(grid, count, part, is_cursor, base)
        return segments

    def _cell(self, grid: Grid, count: int, part: int, is_cursor: bool, base: Style) -> list[Segment]:
        gap = 1 if grid.cell_width >= 3 else 0
        width = grid.cell_width - gap
        colour, is_last = self._colour(count), part > 0 and part == grid.cell_height - 1
        ends = [Segment(" " * gap, base)] if gap else []
        if self.heat_style != "blocks":
            sign = digit(count) if self.heat_style == "digits" else glyph(count)
            style = Style(reverse=True, bold=True) if is_cursor else Style(bold=count == 0)
            is_middle = part == (grid.cell_height - 1) // 2
            return [Segment((sign if is_middle else " ").center(width), base + style), *ends]
        if is_last:  # half of it: a tile, and a gap below
            return [Segment("▀" * width, base + Style(color=self._cursor_colour() if is_cursor else colour)), *ends]
        has_sign = part == (grid.cell_height - 1) // 2 and (width > 1 or count == 0)
        sign = digit(count) if has_sign else " "
        ink = Style(color=_ink(colour), bgcolor=colour, bold=count == 0)
        if is_cursor:
            ink = Style(color=_ink(self._cursor_colour()), bgcolor=self._cursor_colour(), bold=True)
        return [Segment(sign.center(width), ink), *ends]

    def _halves(self, grid: Grid, line: int, base: Style) -> list[Segment]:
        """Two rows of cells in one line: the upper in front, the lower behind."""
        upper, lower = 2 * line, 2 * line + 1
        if upper >= grid.num_rows:
            return []
        segments = [Segment(self._label(grid, upper).ljust(LABEL_WIDTH), base + Style(color=self._muted()))]
        for column in range(grid.num_columns):
            front = self._half_colour(upper, column)
            back = self._half_colour(lower, column) if lower < grid.num_rows else None
            style = Style(color=front, bgcolor=back) if back else base + Style(color=front)
            segments.append(Segment("▀" * grid.cell_width, style))
        return segments

    def _half_colour(self, row: int, column: int) -> str:
        is_cursor = (row, column) == self.cursor and self.has_focus
        return self._cursor_colour() if is_cursor else self._colour(self._cells[row][column])

    def _label(self, grid: Grid, row: int) -> str:
        labels = [self.picture.labels[place] for place in grid.layers_of(row)]
        return labels[0] if len(labels) == 1 else f"{labels[0]}-{labels[-1].lstrip('L')}"

    def _colour(self, count: int) -> str:
        return HEAT.get(self.app.theme, HEAT[DEFAULT_THEME])[min(count, MAX_SHADE)]

    def _cursor_colour(self) -> str:
        return "#ffffff" if self.app.current_theme.dark else "#000000"

    def _muted(self) -> str:
        return self.app.theme_variables["text-muted"]


def _ink(colour: str) -> str:
    """Black or white, whichever reads better on a colour (#rrggbb): the one with the greater contrast."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    luminance = 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]
    return "#000000" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "#ffffff"
