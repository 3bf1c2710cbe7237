"""The line mode: a line a fact, few bytes, no control characters, and the same conversation as the screens."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shoal.client.chat.backend import ChatPiece
from shoal.client.chat.plain_chat import COMMANDS, PlainChat
from shoal.client.tui.session import Connection, Tell
from shoal.protocol.errors import ChannelClosed
from shoal.protocol.events import Observer
from tests.client.tui.fakes import World, large_swarm, pieces_of, small_swarm, world

MAX_BYTES = 6 * 1024
"""Of a short exchange: what a link of 64 kbit/s carries in less than a second (ecosystem goals §4.5)."""


def talk(there: World, *lines: str) -> str:
    """What is printed for these lines of input."""
    there.model.gate.set()
    out = io.StringIO()
    asyncio.run(PlainChat(there.session, there.opener(), io.StringIO("\n".join(lines) + "\n"), out).run())
    return out.getvalue()


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGUAGE", "en")


def test_a_short_exchange_is_a_few_plain_lines(tmp_path: Path) -> None:
    said = talk(world(tmp_path, small_swarm()), "What is a shoal?", "/quit")
    assert "Thought: The user asks" in said
    assert "many small fish that move as one" in said
    assert "tokens per second" in said
    assert len(said.encode()) <= MAX_BYTES
    assert all(character.isprintable() or character == "\n" for character in said)


def test_what_makes_exchanges_slow_here_is_a_line_each_before_the_first_question(tmp_path: Path) -> None:
    there = world(tmp_path, small_swarm())
    notices = ("TCP is slow here.", "Try: sudo sysctl a.b=0")

    @asynccontextmanager
    async def opener(observe: Observer, tell: Tell) -> AsyncIterator[Connection]:
        yield Connection(there.model, there.swarm, notices)

    out = io.StringIO()
    asyncio.run(PlainChat(there.session, opener, io.StringIO("/help\n/quit\n"), out).run())
    lines = out.getvalue().splitlines()
    assert [lines.count(notice) for notice in notices] == [1, 1]
    assert lines.index(notices[1]) < lines.index("Type a question, or /help.")


def test_every_command_of_the_help_is_known(tmp_path: Path) -> None:
    said = talk(world(tmp_path, large_swarm()), "hi", *COMMANDS)
    assert "There is no /" not in said
    assert "/help: this list" in said.splitlines()


def test_facts_about_the_swarm_are_a_line_each(tmp_path: Path) -> None:
    said = talk(world(tmp_path, small_swarm()), "/swarm", "/peers").splitlines()
    assert "Without a holder: 3" in said
    assert "Worst layer: 3" in said
    assert "Needed there: one more node with 132 MB" in said
    assert sum("round trip" in line for line in said) == 4


def test_an_endpoint_has_no_swarm_to_tell_of(tmp_path: Path) -> None:
    assert talk(world(tmp_path), "/swarm", "/peers").count("No swarm is seen") == 2


def test_again_edit_and_open_work_as_on_the_screen(tmp_path: Path) -> None:
    there = world(tmp_path)
    there.model.pieces = pieces_of("one")
    said = talk(there, "first", "/again", "/new", "/list", "/open 1", "/edit", "/unknown", "/open 7")
    assert [asked[-1].content for asked in there.model.asked] == ["first", "first"]
    assert "1: first" in said
    assert "Taken back: first" in said
    assert "There is no /unknown" in said
    assert "wants a number" in said


def test_a_failure_in_the_middle_is_a_line(tmp_path: Path) -> None:
    there = world(tmp_path)
    there.model.pieces, there.model.failure = [ChatPiece("half\x1b[2J", num_tokens=1)], ChannelClosed("the line broke")
    said = talk(there, "hello")
    assert "half[2J\n" in said
    assert "Error: the line broke" in said.splitlines()
