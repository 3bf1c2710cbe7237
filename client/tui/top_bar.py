"""The first line of every screen: which screens there are, and which one this is."""

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.events import Click
from textual.widgets import Static

from shoal.client.translate import N_, _

SCREENS = {
    "chat": N_("Chat"),
    "swarm": N_("Swarm"),
    "node": N_("Node"),
    "latency": N_("Latency"),
    "peers": N_("Peers"),
    "log": N_("Log"),
    "settings": N_("Settings"),
}
"""Screens by mode, in the order of their number keys."""


class Tab(Static):
    """One screen's number and name; a click goes there."""

    def __init__(self, mode: str, number: int, is_current: bool) -> None:
        super().__init__(f"{number} {_(SCREENS[mode])}", markup=False, classes="current" if is_current else "")
        self._mode = mode

    async def on_click(self, event: Click) -> None:
        event.stop()
        await self.app.run_action(f"go('{self._mode}')")


class TopBar(Horizontal):
    """All tabs. `current`: a mode of SCREENS."""

    def __init__(self, current: str) -> None:
        super().__init__()
        self._current = current

    def compose(self) -> ComposeResult:
        yield Static("><> shoal", id="brand", markup=False)
        for number, mode in enumerate(SCREENS, 1):
            yield Tab(mode, number, mode == self._current)
