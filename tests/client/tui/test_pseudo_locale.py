"""Every screen in a language that does not exist, accented and 40 % longer, at 80x24: nothing escapes it or bursts."""

import gettext
import re
import string
from collections.abc import Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot

from shoal.client import translate
from shoal.client.tui.help_screen import HelpScreen
from shoal.client.tui.top_bar import SCREENS
from tests.client.tui.conftest import Run
from tests.client.tui.driving import answered, type_and_send, workers_done
from tests.client.tui.fakes import STORY, World, small_swarm, some_events, world

ACCENTS = str.maketrans("aceinouyACEINOUY", "áçéíñóúýÁÇÉÍÑÓÚÝ")
LONGER = 0.4

SIZE = (80, 24)
WORD = re.compile(r"(?<![\w.~/-])[A-Za-z]{4,}(?![\w.~/-])")
ACTIONS, KEYS, THEME, NODE = "quit help", "space", "dark", "node"
EVENTS = "HolderJoined HolderLost FailedOver ChannelClosed ChannelC layer experts reason"
"""What the log shows: its events stay English, people paste them to each other."""
NAMES = {word.lower() for word in WORD.findall(f"{STORY} hello shoal {ACTIONS} {KEYS} {THEME} {NODE} {EVENTS}")}


class PseudoTranslations(gettext.NullTranslations):
    """Accents on every message; what is asked for is remembered."""

    def gettext(self, message: str) -> str:
        return pseudo(message)

    def ngettext(self, msgid1: str, msgid2: str, n: int) -> str:
        return pseudo(msgid1 if n == 1 else msgid2)


def pseudo(message: str) -> str:
    """The message with accents and longer; what is filled in stays."""
    parts = [
        text.translate(ACCENTS) + ("" if name is None else "{" + name + (":" + spec if spec else "") + "}")
        for text, name, spec, _ in string.Formatter().parse(message)
    ]
    return "".join(parts) + "~" * round(LONGER * len(message))


@pytest.fixture
def pseudo_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translate, "_catalogue", PseudoTranslations)


def drawn(pilot: Pilot[None]) -> list[str]:
    """What is on the screen, line by line."""
    return [strip.text for strip in pilot.app.screen._compositor.render_strips()]


def untranslated(lines: list[str]) -> set[str]:
    """English words on the screen that are neither names nor what the model and the user said."""
    words = {word.lower() for line in lines for word in WORD.findall(line)}
    return {word for word in words - NAMES if set(word) & set("aeiouy")}


async def every_screen(pilot: Pilot[None], there: World, look: Callable[[str], None]) -> None:
    """Ask a question, then go through all screens and the help of each."""
    await type_and_send(pilot, "hello")
    await answered(pilot, there)
    for event in some_events(small_swarm()):
        there.session.book(event)
    await pilot.press("escape")
    for number, mode in enumerate(SCREENS, 1):
        await pilot.press(f"alt+{number}")
        await pilot.pause()
        await workers_done(pilot)
        there.app.redraw()
        await pilot.pause()
        look(mode)
        await pilot.press("f1")
        await pilot.pause()
        assert isinstance(pilot.app.screen, HelpScreen)
        look(f"help of {mode}")
        await pilot.press("escape")
        await pilot.pause()


@pytest.mark.usefixtures("pseudo_locale")
def test_no_word_of_a_screen_escapes_translation(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        there = world(tmp_path, small_swarm())
        async with there.app.run_test(size=SIZE) as pilot:
            await every_screen(pilot, there, lambda at: wanted(at, untranslated(drawn(pilot))))

    all_escaped: dict[str, set[str]] = {}

    def wanted(at: str, escaped: set[str]) -> None:
        all_escaped.setdefault(at, escaped)

    run(main())
    assert not any(all_escaped.values()), all_escaped


@pytest.mark.usefixtures("pseudo_locale")
def test_no_screen_bursts_when_words_are_longer(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        there = world(tmp_path, small_swarm())
        async with there.app.run_test(size=SIZE) as pilot:

            def fits(at: str) -> None:
                assert len(drawn(pilot)) == SIZE[1], at
                region = pilot.app.screen.region
                docked = [widget for widget in pilot.app.screen.children if widget.display]
                burst = [widget for widget in docked if not region.contains_region(widget.region)]
                assert burst == [], at
                assert pilot.app.screen.max_scroll_y == 0, f"{at} has to be scrolled as a whole"

            await every_screen(pilot, there, fits)

    run(main())


def test_the_pseudo_locale_is_longer_and_fills_in_the_same() -> None:
    assert pseudo("{number:.1f} tokens") == "{number:.1f} tókéñs~~~~~~~~"
