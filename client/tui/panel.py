"""A block of coloured text that repaints only what has changed: on a slow link a repaint of the same costs the same."""

from collections.abc import Sequence

from textual.content import Content
from textual.widgets import Static

Part = tuple[str, str]
"""Words and their style."""


class Panel(Static):
    """Shows parts; looked at twice a second, painted when they differ."""

    def __init__(self, id: str | None = None) -> None:
        super().__init__("", id=id, markup=False)
        self._parts: list[Part] | None = None
        self._theme = ""

    def set_parts(self, parts: Sequence[Part]) -> None:
        """Show these, if they are not shown already."""
        if list(parts) != self._parts or self.app.theme != self._theme:
            self._parts, self._theme = list(parts), self.app.theme
            self.update(Content.assemble(*self._parts))
