"""A box to write a longer text in: the system prompt."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Footer, Static, TextArea

from shoal.client.translate import N_
from shoal.client.tui.translated import translate_bindings


class TextDialog(ModalScreen[str | None]):
    """Gives the text, or None if the user went back."""

    HELP = N_("Ctrl+S keeps the text, Esc leaves it as it was.")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "keep", N_("Keep"), id="dialog.keep", priority=True),
        Binding("escape", "leave", N_("Back"), id="dialog.leave", priority=True),
    ]

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self._title = title
        self._text = text
        translate_bindings(self)

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(self._title, classes="dialog-title", markup=False)
            yield TextArea(self._text, soft_wrap=True, compact=True, highlight_cursor_line=False)
            yield Footer(show_command_palette=False, compact=True)

    def action_keep(self) -> None:
        self.dismiss(self.query_one(TextArea).text)

    def action_leave(self) -> None:
        self.dismiss(None)
