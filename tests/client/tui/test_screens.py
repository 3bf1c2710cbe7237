"""The other six screens by keyboard alone: every action of each."""

from pathlib import Path

import pytest
from textual.widgets import DataTable, Input, RichLog, Static

from shoal.client.tui.app import action_ids
from shoal.client.tui.heat_map import HeatMap
from shoal.client.tui.help_screen import HelpScreen
from shoal.client.tui.keymap import checked_keymap, load_keymap
from shoal.client.tui.preferences import Preferences, load_preferences
from shoal.client.tui.themes import DEFAULT_THEME, MONO_THEME
from shoal.client.tui.top_bar import SCREENS
from shoal.protocol.errors import InvalidRequest
from tests.client.tui.conftest import Run
from tests.client.tui.driving import workers_done
from tests.client.tui.fakes import World, small_swarm, some_events, with_more_peers, world


def seen(there: World, selector: str) -> str:
    """The text of a widget."""
    return str(there.app.screen.query_one(selector, Static).render())


def test_number_keys_go_to_every_screen(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        there = world(tmp_path, small_swarm())
        async with there.app.run_test(size=(80, 24)) as pilot:
            await pilot.press("escape")  # out of the prompt
            for number, mode in enumerate(SCREENS, 1):
                await pilot.press(str(number))
                assert there.app.current_mode == mode
            await pilot.press("alt+1", "i", "2")
            assert there.app.current_mode == "chat", "a digit in the prompt is text"
            await pilot.press("f3")
            assert there.app.current_mode == "swarm", "a function key is not"

    run(main())


def test_the_map_leads_from_the_model_to_a_layer_to_its_holders(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        there = world(tmp_path, small_swarm())
        async with there.app.run_test(size=(132, 40)) as pilot:
            await pilot.press("alt+2")
            await pilot.pause()
            assert "One more node with 132 MB closes layer 3" in seen(there, "#swarm-summary")
            await pilot.press("down", "right")
            assert "layer 2 · expert 1 · 2 holders" in seen(there, "#swarm-detail")
            await pilot.press("enter")
            await pilot.pause()
            assert "layer 2 " in seen(there, "#swarm-summary")
            await pilot.press("backspace")
            await pilot.pause()
            assert "whole model" in seen(there, "#swarm-summary")
            await pilot.press("w")
            await pilot.pause()
            assert "layer 3 · expert 20" in seen(there, "#swarm-detail")
            styles = [there.app.screen.query_one(HeatMap).heat_style]
            for _ in range(2):
                await pilot.press("g")
                styles.append(there.app.screen.query_one(HeatMap).heat_style)
            assert styles == ["blocks", "glyphs", "digits"]

    run(main())


def test_the_map_follows_the_swarm(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        swarm = small_swarm()
        there = world(tmp_path, swarm)
        async with there.app.run_test(size=(132, 40)) as pilot:
            await pilot.press("alt+2")
            swarm.counts = {layer: dict.fromkeys(counts, 2) for layer, counts in swarm.counts.items()}
            there.app.redraw()
            await pilot.pause()
            assert "Every expert has two holders or more" in seen(there, "#swarm-summary")

    run(main())


def test_the_node_is_paused_and_resumed(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        there = world(tmp_path)
        async with there.app.run_test(size=(80, 24)) as pilot:
            await pilot.press("alt+3")
            await workers_done(pilot)
            assert "serving" in seen(there, "#node-facts")
            assert "866.6 tokens" in seen(there, "#node-facts")
            for key in ("p", "p", "t"):
                await pilot.press(key)
                await workers_done(pilot)
            assert there.node.asked == ["pause None", "resume", "pause 7200.0"]
            assert "paused" in seen(there, "#node-facts")
            there.node.present = None
            there.app.redraw()
            await workers_done(pilot)
            assert "No node of yours" in seen(there, "#node-facts")

    run(main())


def test_the_waterfall_shows_the_last_token_or_the_mean_and_freezes(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        there = world(tmp_path, small_swarm())
        for event in some_events(small_swarm()):
            there.session.book(event)
        async with there.app.run_test(size=(132, 40)) as pilot:
            await pilot.press("alt+4")
            await pilot.pause()
            assert "last token  15.0 ms  p50 14.0 ms · p99 15.0 ms of 8 tokens" in seen(there, "#latency-summary")
            assert seen(there, "#bars").count("\n") == 4
            await pilot.press("m")
            assert "mean of 8 tokens  13.5 ms" in seen(there, "#latency-summary")
            await pilot.press("space")
            before = seen(there, "#bars")
            for event in some_events(small_swarm()):
                there.session.book(event)
            there.app.redraw()
            assert seen(there, "#bars") == before

    run(main())


def test_peers_come_go_and_are_sorted(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        swarm = small_swarm()
        there = world(tmp_path, swarm)
        async with there.app.run_test(size=(132, 40)) as pilot:
            await pilot.press("alt+5")
            await pilot.pause()
            assert "2 of 4 peers in use" in seen(there, "#peers-summary")
            assert "L1: 0-15" in seen(there, "#peer-detail")
            await pilot.press("s")
            assert there.app.screen.query_one(DataTable).row_count == 4
            await pilot.press("y")
            assert there.app.clipboard.startswith("12D3KooW")
            swarm.members = with_more_peers(swarm).members
            there.app.redraw()
            assert there.app.screen.query_one(DataTable).row_count == 5

    run(main())


def test_the_log_is_filtered_held_and_widened(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        there = world(tmp_path, small_swarm())
        for event in some_events(small_swarm()):
            there.session.book(event)
        async with there.app.run_test(size=(132, 40)) as pilot:
            await pilot.press("alt+6")
            await pilot.pause()
            assert seen(there, "#log-summary") == "6 lines"
            await pilot.press("slash", *"failed", "escape")
            await pilot.pause()
            assert seen(there, "#log-summary") == "1 line"
            assert "FailedOver" in there.app.screen.query_one(RichLog).lines[0].text
            there.app.screen.query_one("#filter", Input).value = ""
            await pilot.press("x", "space")
            await pilot.pause()
            assert seen(there, "#log-summary") == "38 lines · held still"

    run(main())


def test_settings_hold_at_once_and_are_kept(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        there = world(tmp_path, preferences=Preferences(theme=DEFAULT_THEME))
        async with there.app.run_test(size=(80, 24)) as pilot:
            await pilot.press("alt+7")
            await pilot.pause()
            there.app.screen.query_one("#temperature", Input).value = "0"
            await pilot.pause()
            there.app.screen.query_one("#max_tokens", Input).value = "many"
            await pilot.pause()
            assert "a number from 1 to" in seen(there, "#settings-note")
            there.app.screen.query_one("#thinking").focus()
            await pilot.press("space", "escape", "f9")
            assert there.app.theme == MONO_THEME
        assert there.session.preferences.options().temperature == 0
        assert there.session.preferences.options().thinking
        kept = load_preferences(there.session.preferences_path)
        assert kept == there.session.preferences
        assert there.session.preferences_path.stat().st_mode & 0o777 == 0o600

    run(main())


def test_help_and_palette_know_the_actions_of_where_the_user_stands(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        there = world(tmp_path, small_swarm())
        async with there.app.run_test(size=(132, 40)) as pilot:
            await pilot.press("alt+2", "question_mark")
            await pilot.pause()
            assert isinstance(there.app.screen, HelpScreen)
            words = str(there.app.screen.query_one("#help Static", Static).render())
            assert "swarm.worst" in words
            assert "Each cell is an expert" in words
            await pilot.press("escape")
            titles = [command.title for command in there.app.get_system_commands(there.app.screen)]
            assert {"Worst layer", "Latency", "Quit", "Theme"} <= set(titles)

    run(main())


def test_users_keys_replace_ours(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        there = world(tmp_path, small_swarm())
        there.app.set_keymap({"swarm.anywhere": "f10"})
        async with there.app.run_test(size=(80, 24)) as pilot:
            await pilot.press("f10")
            assert there.app.current_mode == "swarm"

    run(main())


def test_without_colour_the_map_begins_with_signs(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def main() -> None:
        there = world(tmp_path, small_swarm())
        async with there.app.run_test(size=(80, 24)) as pilot:
            assert there.app.theme == MONO_THEME
            await pilot.press("alt+2")
            assert there.app.screen.query_one(HeatMap).heat_style == "glyphs"

    run(main())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"keys": {"chat.stopp": "f5"}}, r"did you mean chat\.stop"),
        ({"keys": {"zzz": "f5"}}, "known are"),
        ({"keys": {"chat.stop": 5}}, "must be text"),
        ({"keys": 5}, "no table"),
        ({"colours": {}}, "there is only"),
    ],
)
def test_a_wrong_key_map_is_refused_with_a_hint(settings: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        checked_keymap(settings, action_ids(), "keys.toml")


def test_a_key_map_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    assert load_keymap(path, action_ids()) == {}
    path.write_text('[keys]\n"chat.stop" = "ctrl+k"\n')
    assert load_keymap(path, action_ids()) == {"chat.stop": "ctrl+k"}
    path.write_text("[keys")
    with pytest.raises(InvalidRequest, match=r"keys\.toml"):
        load_keymap(path, action_ids())


@pytest.mark.parametrize("text", ["colour = 1", 'max_tokens = "many"', "= 5"])
def test_settings_that_we_did_not_write_are_refused_with_the_files_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "chat.toml").write_text(text)
    with pytest.raises(InvalidRequest, match=r"chat\.toml"):
        load_preferences(tmp_path / "chat.toml")


def test_a_crash_report_has_no_word_of_the_conversation(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def main() -> None:
        there = world(tmp_path, small_swarm())

        def broken() -> None:
            said = "my canary secret"
            raise RuntimeError(f"a bug after {len(said)} characters")

        async with there.app.run_test(size=(80, 24)):
            monkeypatch.setattr(there.app.screen, "show", broken)
            there.app.call_later(there.app.redraw)

    with pytest.raises(RuntimeError, match="a bug"):
        run(main())
    printed = capsys.readouterr()
    assert "canary" not in printed.out + printed.err.replace('said = "my canary secret"', "")
