"""Help for where the user stands: what the focused thing is, every key that works now, and the actions' ids."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import ActiveBinding, Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen, Screen
from textual.widgets import Footer, Static

from shoal.client.translate import N_, _
from shoal.client.tui.panel import Part
from shoal.client.tui.translated import translate_bindings


class HelpScreen(ModalScreen[None]):
    """Made from the screen below it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,f1,q", "leave", N_("Back"), id="help.leave", priority=True),
    ]

    def __init__(self, below: Screen[None], keymap_path: str) -> None:
        super().__init__()
        self._parts = [*_purpose(below), *_keys(below), *_note(keymap_path)]
        translate_bindings(self)

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(_("Help"), classes="dialog-title", markup=False)
            with VerticalScroll(id="help"):
                yield Static(Content.assemble(*self._parts), markup=False)
            yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        self.query_one("#help").focus()

    def action_leave(self) -> None:
        self.dismiss()


def _purpose(below: Screen[None]) -> list[Part]:
    """What screen and focused widget say of themselves."""
    texts = [getattr(node, "HELP", None) for node in (below, below.focused)]
    return [(_(text) + "\n\n", "$foreground") for text in dict.fromkeys(texts) if text]


def _keys(below: Screen[None]) -> list[Part]:
    """The keys that work where the user stands, by action; those with an id can be changed."""
    by_action: dict[str, list[ActiveBinding]] = {}
    for active in below.active_bindings.values():
        if active.binding.description and active.enabled:
            by_action.setdefault(active.binding.action, []).append(active)
    parts: list[Part] = []
    for actives in sorted(by_action.values(), key=lambda each: not each[0].binding.id):  # ours first, then Textual's
        keys = " ".join(below.app.get_key_display(active.binding) for active in actives)
        binding = actives[0].binding
        parts.append((f"  {keys:<22.22} ", "bold $primary"))
        parts.append((f"{binding.description:<26.26} ", "$foreground"))
        parts.append((f"{binding.id or ''}\n", "$text-muted"))
    return parts


def _note(keymap_path: str) -> list[Part]:
    words = _('Keys with a name on the right are changed in {path}, for example: [keys] "go.swarm" = "v"')
    return [("\n" + words.format(path=keymap_path), "$text-muted")]
