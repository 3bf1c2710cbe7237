"""The application: seven screens, the keys between them, the palette, the themes, and the connection behind them."""

import asyncio
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from rich.segment import Segments
from rich.traceback import Traceback
from textual import on
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.dom import DOMNode
from textual.screen import Screen

from shoal.client.translate import N_, _
from shoal.client.tui.chat_screen import ChatScreen, RetryConnection
from shoal.client.tui.conversations_dialog import ConversationsDialog
from shoal.client.tui.heat_map import HeatMap
from shoal.client.tui.help_screen import HelpScreen
from shoal.client.tui.latency_screen import LatencyScreen
from shoal.client.tui.log_screen import LogScreen
from shoal.client.tui.node_screen import NodeScreen
from shoal.client.tui.peers_screen import PeersScreen
from shoal.client.tui.prompt import Prompt
from shoal.client.tui.screen import ShoalScreen
from shoal.client.tui.session import Opener, Session
from shoal.client.tui.settings_screen import SettingsScreen
from shoal.client.tui.swarm_screen import SwarmScreen
from shoal.client.tui.text_dialog import TextDialog
from shoal.client.tui.themes import DEFAULT_THEME, MONO_THEME, THEMES
from shoal.client.tui.top_bar import SCREENS
from shoal.client.tui.translated import translate_bindings
from shoal.protocol.errors import ShoalError

SERVER_WATCH_S = 1.0
"""Between two looks whether the server of our browser view still lives."""

REDRAW_S = 0.5
"""Between two looks at the swarm. Tokens are shown as they come; figures twice a second are read more easily."""

NOTICE_S = 20.0
"""For how long three sentences and a command stay."""


SEVEN: tuple[type[ShoalScreen], ...] = (
    ChatScreen,
    SwarmScreen,
    NodeScreen,
    LatencyScreen,
    PeersScreen,
    LogScreen,
    SettingsScreen,
)
"""The screens, in the order of their keys."""


class ShoalApp(App[None]):
    """`shoal chat`."""

    TITLE = "shoal"
    CSS_PATH = "shoal.tcss"
    ENABLE_COMMAND_PALETTE = True
    MODES: ClassVar = {screen.MODE: screen for screen in SEVEN}
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(str(number), f"go('{mode}')", word, id=f"go.{mode}", show=False)
            for number, (mode, word) in enumerate(SCREENS.items(), 1)
        ),
        *(  # from the prompt too, where a digit is text; most terminals send Alt with a digit as another character
            Binding(
                f"f{number + 1},alt+{number}", f"go('{mode}')", word, id=f"{mode}.anywhere", show=False, priority=True
            )
            for number, (mode, word) in enumerate(SCREENS.items(), 1)
        ),
        Binding("question_mark,f1", "help", N_("Help"), id="help"),
        Binding("ctrl+p", "command_palette", N_("Palette"), id="palette", show=False, priority=True),
        Binding("f9", "mono", N_("Mono"), id="mono", show=False),
        Binding("ctrl+q", "quit", N_("Quit"), id="quit", priority=True),
    ]

    def __init__(self, session: Session, keymap: Mapping[str, str], keymap_path: Path) -> None:
        """keymap: checked, see `keymap.py`."""
        super().__init__()
        self.session = session
        self._keymap_path = keymap_path
        self.retrying = asyncio.Event()
        translate_bindings(self)
        self.set_keymap(dict(keymap))
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = session.preferences.theme or (MONO_THEME if self.no_color else DEFAULT_THEME)

    def on_mount(self) -> None:
        self.switch_mode("chat")
        self.set_interval(REDRAW_S, self.redraw)

    def redraw(self) -> None:
        """Draw what has changed on the screen that is seen; the timer may run before the first and after the last."""
        seen = self.screen_stack[-1:]
        if seen and isinstance(seen[0], ShoalScreen):
            seen[0].refresh_all()
            self._say_notices()

    def _say_notices(self) -> None:
        """In a corner, over whatever is done there, and gone by itself; `shoal doctor` says the same at any time."""
        if notices := self.session.new_notices():
            words = "\n".join([*notices, _("shoal doctor says this again.")])
            self.notify(words, timeout=NOTICE_S, markup=False)

    def action_go(self, mode: str) -> None:
        """Another screen; not from a dialog, which wants its answer first."""
        if isinstance(self.screen, ShoalScreen):
            self.switch_mode(mode)

    def action_help(self) -> None:
        if isinstance(self.screen, ShoalScreen):
            self.push_screen(HelpScreen(self.screen, str(self._keymap_path)))

    def action_mono(self) -> None:
        """To the theme without colours, and back."""
        wanted = self.session.preferences.theme or DEFAULT_THEME
        self.theme = MONO_THEME if self.theme != MONO_THEME else wanted if wanted != MONO_THEME else DEFAULT_THEME

    @on(RetryConnection)
    def retry(self) -> None:
        """Try to connect again."""
        self.retrying.set()

    def _fatal_error(self) -> None:
        """Textual's own, without the values of local variables: conversations and tokens are among them."""
        trace = Traceback(show_locals=False, width=None)
        self._exit_renderables.append(Segments(self.console.render(trace, self.console.options)))
        self._close_messages_no_wait()

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """The palette: every action that works where the user stands."""
        seen = set()
        for active in screen.active_bindings.values():
            binding = active.binding
            if binding.description and binding.id and binding.id not in seen and active.enabled:
                seen.add(binding.id)
                run = partial(self.run_action, binding.action, active.node)
                yield SystemCommand(binding.description, self.get_key_display(binding), run)
        yield SystemCommand(_("Theme"), _("Choose another"), self.action_change_theme)


def action_ids() -> set[str]:
    """The ids that a key map may name."""
    owners: tuple[type[DOMNode], ...] = (ShoalApp, *SEVEN, Prompt, HeatMap, TextDialog, ConversationsDialog, HelpScreen)
    return {each.id for owner in owners for each in owner.BINDINGS if isinstance(each, Binding) and each.id}


async def run_app(app: ShoalApp, open_connection: Opener, server_pid: int | None = None) -> None:
    """Show the application at once and connect meanwhile; at the end leave the swarm before returning.

    server_pid: the process that shows our screens in a browser; we end when it does, however it ended.
    """
    tasks = [asyncio.create_task(_keep_connected(app, open_connection), name="connection")]
    if server_pid is not None:
        tasks.append(asyncio.create_task(_leave_with(app, server_pid), name="server watch"))
    try:
        await app.run_async()
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def _leave_with(app: ShoalApp, server_pid: int) -> None:
    while os.getppid() == server_pid:  # noqa: ASYNC110  # no event tells that a parent was killed
        await asyncio.sleep(SERVER_WATCH_S)
    app.exit()


async def _keep_connected(app: ShoalApp, open_connection: Opener) -> None:
    """Hold one connection until cancelled; after a failure, try again when the user says so."""
    session = app.session

    def tell(words: str) -> None:
        session.opening = words

    while True:
        session.failure, session.connection = None, None
        try:
            async with open_connection(session.book, tell) as connection:
                session.connection = connection
                await asyncio.Event().wait()
        except (ShoalError, OSError) as error:
            session.failure, session.connection = error, None
        app.retrying.clear()
        await app.retrying.wait()
