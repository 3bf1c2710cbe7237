"""What every screen is made of: the tabs above, its own body, the status line and the keys below."""

from abc import abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.css.query import NoMatches
from textual.screen import Screen
from textual.widgets import Footer

from shoal.client.tui.session import Session
from shoal.client.tui.status_line import StatusLine
from shoal.client.tui.top_bar import TopBar
from shoal.client.tui.translated import translate_bindings

if TYPE_CHECKING:
    from shoal.client.tui.app import ShoalApp


class ShoalScreen(Screen[None]):
    """One of the seven. A subclass composes its body, and redraws it in `show`."""

    MODE: ClassVar[str] = ""
    """Its key in `top_bar.SCREENS`."""

    def __init__(self) -> None:
        super().__init__()
        translate_bindings(self)

    @property
    def session(self) -> Session:
        return cast("ShoalApp", self.app).session

    def compose(self) -> ComposeResult:
        yield TopBar(self.MODE)
        yield from self.compose_body()
        yield StatusLine()
        yield Footer(show_command_palette=False, compact=True)

    @abstractmethod
    def compose_body(self) -> ComposeResult:
        """What stands between the tabs and the status line."""

    @abstractmethod
    def show(self) -> None:
        """Draw the state of things; called a few times a second while this screen is seen."""

    def refresh_all(self) -> None:
        """Draw body and status line."""
        if not self.is_mounted:
            return
        with suppress(NoMatches):  # it is being taken down, and some of its widgets are gone
            self.show()
            self.query_one(StatusLine).show(self.session)

    def on_screen_resume(self) -> None:
        self.call_after_refresh(self.refresh_all)
