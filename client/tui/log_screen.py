"""What happened, newest at the end: filter it, hold it still, show each exchange."""

from dataclasses import fields
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input, RichLog

from shoal.client.translate import N_, _, ngettext
from shoal.client.tui.bars import milliseconds, short
from shoal.client.tui.event_book import Entry
from shoal.client.tui.panel import Panel
from shoal.client.tui.screen import ShoalScreen

MAX_LINES = 500
"""Lines that are drawn; the filter looks through everything that is kept."""


class LogScreen(ShoalScreen):
    """Screen 6."""

    MODE = "log"
    HELP = N_("Events of the swarm. / filters by any word of a line, space holds still, x shows every exchange.")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", N_("Filter"), id="log.filter"),
        Binding("space", "pause", N_("Hold"), id="log.pause"),
        Binding("x", "exchanges", N_("Exchanges"), id="log.exchanges"),
        Binding("escape", "leave", N_("Leave filter"), id="log.leave", show=False, priority=True),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._is_held = False
        self._with_exchanges = False
        self._drawn = -1
        """Events that the book had when the log was drawn."""

    def compose_body(self) -> ComposeResult:
        yield Input(placeholder=_("filter, e.g. FailedOver or a peer's last letters"), id="filter", compact=True)
        yield Panel(id="log-summary")
        yield RichLog(id="log", markup=False, highlight=False, wrap=False, max_lines=MAX_LINES)

    def on_mount(self) -> None:
        self.query_one(RichLog).focus()

    def show(self) -> None:
        if not self._is_held and self.session.book.num_events != self._drawn:
            self._draw()

    @on(Input.Changed, "#filter")
    def _draw(self) -> None:
        self._drawn = self.session.book.num_events
        wanted = self.query_one("#filter", Input).value.strip().lower()
        lines = [line_of(entry) for entry in self.session.book.entries(self._with_exchanges)]
        shown = [line for line in lines if wanted in line.lower()]
        log = self.query_one(RichLog)
        log.clear()
        for line in shown[-MAX_LINES:]:
            log.write(line)
        count = ngettext("{number} line", "{number} lines", len(shown)).format(number=len(shown))
        held = " · " + _("held still") if self._is_held else ""
        self.query_one("#log-summary", Panel).set_parts([(count + held, "$foreground")])

    def action_filter(self) -> None:
        self.query_one("#filter", Input).focus()

    def action_leave(self) -> None:
        self.query_one(RichLog).focus()

    def action_pause(self) -> None:
        self._is_held = not self._is_held
        self._draw()

    def action_exchanges(self) -> None:
        self._with_exchanges = not self._with_exchanges
        self._draw()


def line_of(entry: Entry) -> str:
    """One event as a line: time, name, fields. Names are the protocol's and are not translated: people search them."""
    words = [f"{entry.at_s:9.2f} s  {type(entry.event).__name__:<14}"]
    for field in fields(entry.event):
        value = getattr(entry.event, field.name)
        name = field.name.removesuffix("_s")
        if field.name == "peer":
            words.append(short(value))
        elif field.name.endswith("_s"):
            words.append(f"{name} {milliseconds(value)}")
        elif isinstance(value, tuple):
            words.append(f"{name} {','.join(map(str, value))}")
        else:
            words.append(f"{name} {value}")
    return "  ".join(words)
