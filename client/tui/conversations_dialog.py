"""The saved conversations: open one, or delete it."""

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Footer, OptionList, Static
from textual.widgets.option_list import Option

from shoal.client.chat.conversations import Conversation, ConversationStore
from shoal.client.chat.safe_text import printable
from shoal.client.translate import N_, _, ngettext
from shoal.client.tui.translated import translate_bindings


class ConversationsDialog(ModalScreen[Conversation | None]):
    """Gives the chosen conversation, or None if the user went back."""

    HELP = N_("Enter opens a conversation, d deletes it, Esc goes back.")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d,delete", "delete", N_("Delete"), id="conversations.delete"),
        Binding("escape", "leave", N_("Back"), id="conversations.leave"),
    ]

    def __init__(self, store: ConversationStore) -> None:
        super().__init__()
        self._store = store
        self._shown: list[Conversation] = []
        translate_bindings(self)

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(_("Saved conversations"), classes="dialog-title", markup=False)
            yield OptionList(markup=False)
            yield Static(_("There are none yet."), id="none", markup=False)
            yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        self._fill()
        self.query_one(OptionList).focus()

    def _fill(self) -> None:
        self._shown = self._store.all()
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options([Option(_line(each), id=each.id) for each in self._shown])
        options.highlighted = 0 if self._shown else None
        options.display = bool(self._shown)
        self.query_one("#none").display = not self._shown

    @on(OptionList.OptionSelected)
    def choose(self, event: OptionList.OptionSelected) -> None:
        """Enter, or a click."""
        self.dismiss(self._shown[event.option_index])

    def action_delete(self) -> None:
        place = self.query_one(OptionList).highlighted
        if place is not None:
            self._store.delete(self._shown[place].id)
            self._fill()

    def action_leave(self) -> None:
        self.dismiss(None)


def _line(conversation: Conversation) -> Content:
    number = len(conversation.messages)
    count = ngettext("{number} message", "{number} messages", number).format(number=number)
    return Content.assemble(
        printable(conversation.title), (f"  {count} · {printable(conversation.model)}", "$text-muted")
    )
