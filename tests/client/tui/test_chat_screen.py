"""The conversation by keyboard alone: every action of the chat screen."""

import os
from pathlib import Path

import pytest
from textual.events import Key
from textual.widgets import Collapsible, OptionList, TextArea

from shoal.client.chat.backend import ChatPiece
from shoal.client.tui.message_view import AnswerView, NoteView
from shoal.client.tui.preferences import Preferences
from shoal.client.tui.prompt import Prompt
from shoal.client.tui.session import Connection
from shoal.protocol.errors import ChannelClosed
from tests.client.tui.conftest import Run
from tests.client.tui.driving import answered, type_and_send, workers_done
from tests.client.tui.fakes import STORY, THOUGHT, pieces_of, world


def test_an_answer_streams_with_its_thought_folded(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        there = world(tmp_path)
        async with there.app.run_test(size=(80, 24)) as pilot:
            await type_and_send(pilot, "What is a shoal?")
            view = there.app.screen.query_one(AnswerView)
            assert view.text == STORY
            assert view.reasoning.strip() == THOUGHT
            assert view.query_one(Collapsible).collapsed
            await pilot.press("alt+r")
            assert not view.query_one(Collapsible).collapsed
            await answered(pilot, there)
        assert [message.role for message in there.session.dialogue.conversation.messages] == ["user", "assistant"]

    run(main())


def test_escape_stops_the_answer_and_keeps_what_came(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        there = world(tmp_path)
        async with there.app.run_test() as pilot:
            await type_and_send(pilot, "go on")
            assert there.model.num_closed == 0
            await pilot.press("escape")
            await workers_done(pilot)
            assert there.model.num_closed == 1
            assert there.session.dialogue.conversation.messages[-1].content == STORY
            await pilot.pause()
            assert "stopped" in str(there.app.screen.query_one(NoteView).render())

    run(main())


def test_again_asks_the_same_question_and_replaces_the_answer(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        there = world(tmp_path)
        async with there.app.run_test() as pilot:
            await type_and_send(pilot, "hello")
            await answered(pilot, there)
            there.model.pieces = pieces_of("another answer")
            await pilot.press("ctrl+r")
            await answered(pilot, there)
        assert [asked[-1].content for asked in there.model.asked] == ["hello", "hello"]
        assert there.session.dialogue.conversation.messages[-1].content == "another answer"
        assert len(there.session.dialogue.conversation.messages) == 2

    run(main())


def test_edit_puts_the_last_question_back_into_the_prompt(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        there = world(tmp_path)
        async with there.app.run_test() as pilot:
            await type_and_send(pilot, "helo")
            await answered(pilot, there)
            await pilot.press("ctrl+t")
            prompt = there.app.screen.query_one(Prompt)
            assert prompt.text == "helo"
            assert there.session.dialogue.conversation.messages == ()
            await pilot.press("backspace", "l", "o", "enter")
            await answered(pilot, there)
        assert there.model.asked[-1][-1].content == "hello"

    run(main())


def test_a_burst_of_keys_and_enter_is_sent_whole(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        there = world(tmp_path)
        async with there.app.run_test() as pilot:
            await pilot.pause()
            for key in [*"burst", "enter"]:
                pilot.app.post_message(_key(key))
            await answered(pilot, there)
        assert there.model.asked[0][-1].content == "burst"

    run(main())


def test_the_system_prompt_goes_first_from_the_next_answer_on(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        there = world(tmp_path)
        async with there.app.run_test() as pilot:
            await pilot.press("ctrl+s")
            there.app.screen.query_one(TextArea).insert("Be brief.")
            await pilot.press("ctrl+s")
            await type_and_send(pilot, "hello")
            await answered(pilot, there)
        assert [(each.role, each.content) for each in there.model.asked[0]] == [
            ("system", "Be brief."),
            ("user", "hello"),
        ]

    run(main())


def test_a_saved_conversation_is_opened_and_deleted_by_keyboard(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        there = world(tmp_path)
        async with there.app.run_test() as pilot:
            await type_and_send(pilot, "first talk")
            await answered(pilot, there)
            await pilot.press("ctrl+n")
            assert there.session.dialogue.conversation.messages == ()
            await pilot.press("ctrl+o")
            await pilot.press("enter")
            await pilot.pause()
            assert there.session.dialogue.conversation.title == "first talk"
            assert len(there.app.screen.query(AnswerView)) == 1
            await pilot.press("ctrl+o")
            await pilot.press("d")
            assert not there.app.screen.query_one(OptionList).display
            await pilot.press("escape")
        assert there.session.store.all() == []

    run(main())


def test_conversations_are_not_kept_if_the_user_says_so(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        there = world(tmp_path, preferences=Preferences(saves_conversations=False))
        async with there.app.run_test() as pilot:
            await type_and_send(pilot, "secret")
            await answered(pilot, there)

    run(main())
    assert not any("secret" in (Path(at) / name).read_text() for at, _, names in os.walk(tmp_path) for name in names)


def test_a_failure_in_the_middle_is_told_and_what_came_is_kept(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        there = world(tmp_path)
        there.model.pieces, there.model.failure = [ChatPiece("half an", num_tokens=1)], ChannelClosed("the line broke")
        async with there.app.run_test() as pilot:
            await type_and_send(pilot, "hello")
            await answered(pilot, there)
            note = there.app.screen.query_one(NoteView)
            assert "the line broke" in str(note.render())
            assert note.has_class("error")
        assert there.session.dialogue.conversation.messages[-1].content == "half an"

    run(main())


def test_escape_sequences_of_a_model_never_reach_the_terminal(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        there = world(tmp_path)
        there.model.pieces = [ChatPiece("a\x1b]0;owned\x07b", "t\x1b[2Jt", 1)]
        there.model.model_name = "evil\x1b[31m"
        async with there.app.run_test() as pilot:
            await type_and_send(pilot, "hello")
            await pilot.press("alt+r")
            await answered(pilot, there)
            drawn = "".join(strip.text for strip in there.app.screen._compositor.render_strips())
        assert "\x1b" not in drawn
        assert "\x07" not in drawn

    run(main())


def test_a_question_that_comes_too_early_is_asked_once_there_is_a_connection(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        there = world(tmp_path)
        connection, there.session.connection = there.session.connection, None
        async with there.app.run_test() as pilot:
            await type_and_send(pilot, "hello")
            assert "as soon as" in str(there.app.screen.query_one(NoteView).render())
            there.session.connection = connection
            there.app.redraw()
            await answered(pilot, there)
        assert [asked[-1].content for asked in there.model.asked] == ["hello"]

    run(main())


def test_without_a_connection_again_tries_to_connect(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        there = world(tmp_path)
        connection, there.session.connection = there.session.connection, None
        there.session.failure = ChannelClosed("nobody answers")
        async with there.app.run_test() as pilot:
            await type_and_send(pilot, "hello")
            assert there.app.screen.query_one(NoteView).has_class("error")
            await pilot.press("ctrl+r")
            await pilot.pause()
            assert there.app.retrying.is_set()
            there.session.connection = connection
            there.app.redraw()
            await answered(pilot, there)
        assert len(there.model.asked) == 1

    run(main())


NOTICES = ("TCP is slow here.", "Try: sudo sysctl a.b=0 [c]")


def test_what_a_connection_has_to_say_is_said_once_and_in_a_corner(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    async def main() -> None:
        there = world(tmp_path)

        def notify(words: str, timeout: float, markup: bool) -> None:
            assert not markup  # a command may have square brackets
            said.append(words)

        monkeypatch.setattr(there.app, "notify", notify)
        async with there.app.run_test() as pilot:
            there.app.redraw()
            assert said == []
            for _ in range(2):  # a connection that is made anew says the same
                there.session.connection = Connection(there.model, None, NOTICES)
                there.app.redraw()
                there.app.redraw()
            assert said == ["\n".join([*NOTICES, "shoal doctor says this again."])]
            await type_and_send(pilot, "hello")
            await answered(pilot, there)
        assert len(said) == 1
        assert len(there.model.asked) == 1

    run(main())


def _key(key: str) -> Key:
    return Key(key, key if len(key) == 1 else "\r")
