"""Where the user writes: Enter sends, Shift+Enter (or Ctrl+J, which every terminal knows) begins a new line."""

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

from shoal.client.translate import N_, _
from shoal.client.tui.translated import translate_bindings


class Prompt(TextArea):
    """Grows with its text up to six lines."""

    HELP = N_(
        "Write your question here. F2 to F8 go to the screens; so do the number keys once Esc has left the prompt."
    )

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", N_("Send"), id="prompt.send", priority=True),
        Binding(
            "shift+enter,ctrl+j,alt+enter", "newline", N_("New line"), id="prompt.newline", priority=True, show=False
        ),
    ]

    class Sent(Message):
        """The user has asked something."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self) -> None:
        super().__init__(
            soft_wrap=True, compact=True, show_line_numbers=False, highlight_cursor_line=False, tab_behavior="focus",
            placeholder=_("Ask something"), id="prompt",
        )  # fmt: skip
        self.cursor_blink = False  # some readers cannot bear it, and each blink is a repaint
        translate_bindings(self)

    def action_send(self) -> None:
        self.call_later(self._send)

    def action_newline(self) -> None:
        self.call_later(self.insert, "\n")

    def _send(self) -> None:
        """Behind the keys that came before Enter: bindings overtake them in a burst (a paste, a slow link)."""
        text = self.text.strip()
        if text:
            self.text = ""
            self.post_message(self.Sent(text))
