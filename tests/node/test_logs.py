"""Logs: a closed catalogue, JSON for programs, sentences for people, bounded in size and memory."""

import asyncio
import io
import json
import logging
from dataclasses import fields
from pathlib import Path

import pytest

from shoal.node import logs
from shoal.node.log_events import (
    CATALOGUE,
    LibrarySaid,
    NodePaused,
    NodeResumed,
    RequestServed,
    log_event,
    name_of,
)
from shoal.node.logs import log_path, logging_to, read_lines
from shoal.protocol.control import LogLine, PauseReason

FORBIDDEN = {"prompt", "text", "content", "hidden", "activations", "key", "seed", "token", "invite", "secret"}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_no_event_has_a_field_for_what_must_not_be_logged() -> None:
    assert {field.name for event in CATALOGUE for field in fields(event)} & FORBIDDEN == set()


def test_every_event_has_its_own_name_and_a_sentence() -> None:
    assert len({name_of(event) for event in CATALOGUE}) == len(CATALOGUE)
    assert str(NodePaused(PauseReason.BATTERY, None)) == "paused: battery"
    assert str(NodeResumed()) == "serving again"


def logged(tmp_path: Path, stream: io.StringIO, level: str = "info") -> list[LogLine]:
    async def scene() -> list[LogLine]:
        with logging_to(log_path(tmp_path, "node"), level, asyncio.get_running_loop(), stream) as memory:
            log_event(NodePaused(PauseReason.USER, 5.0))
            log_event(RequestServed("12D3", 3, 2, 1, 0.5))
            logging.getLogger("somebody").info("chatter")
            logging.getLogger("somebody").warning("careful\nnow %s", "x" * 1000)
            try:
                raise ValueError("a message that may quote data")
            except ValueError:
                logging.getLogger("somebody").exception("failed")
            await asyncio.sleep(0)
            return memory.last(100)

    return asyncio.run(scene())


def test_a_program_gets_one_json_object_a_line_the_same_in_stream_file_and_memory(tmp_path: Path) -> None:
    stream = io.StringIO()
    memory = logged(tmp_path, stream)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["node_paused", "library_said", "library_said"]
    assert lines[0]["fields"] == {"reason": "user", "until_s": 5.0}
    assert lines[2]["fields"] == {"logger": "somebody", "message": "failed", "error": "ValueError"}
    assert len(lines[1]["fields"]["message"]) == logs.MAX_MESSAGE_CHARACTERS
    assert read_lines(log_path(tmp_path, "node"), 100) == memory
    assert [line.event for line in memory] == [line["event"] for line in lines]


def test_people_get_sentences(tmp_path: Path) -> None:
    stream = Terminal()
    logged(tmp_path, stream, "debug")
    first, second = stream.getvalue().splitlines()[:2]
    assert first.endswith("info    paused: user")
    assert second.endswith("debug   layer 3: 1 tokens, 2 experts in 0.50 ms")


def test_the_file_is_rotated_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_FILE_BYTES", 2000)

    async def scene() -> None:
        with logging_to(log_path(tmp_path, "node"), "info", asyncio.get_running_loop(), io.StringIO()):
            for _ in range(200):
                log_event(LibrarySaid("somebody", "x" * 100, None))

    asyncio.run(scene())
    files = sorted(tmp_path.glob("node.log*"))
    assert len(files) == 1 + logs.NUM_OLD_FILES
    assert all(file.stat().st_size <= 2000 for file in files)


def test_a_follower_gets_what_happens_and_a_slow_one_loses_the_oldest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MAX_BEHIND", 2)

    async def scene() -> list[object]:
        with logging_to(log_path(tmp_path, "node"), "info", asyncio.get_running_loop(), io.StringIO()) as memory:
            following = memory.follow()
            first = asyncio.ensure_future(anext(following))
            await asyncio.sleep(0)
            for reason in PauseReason:
                log_event(NodePaused(reason, None))
            return [(await each).fields["reason"] for each in (first, anext(following))]

    assert asyncio.run(scene()) == [reason.value for reason in PauseReason][-2:]


def test_a_torn_line_of_a_crash_is_left_out(tmp_path: Path) -> None:
    logged(tmp_path, io.StringIO())
    path = log_path(tmp_path, "node")
    path.write_bytes(path.read_bytes() + b'{"at_s": 1, "lev')
    assert len(read_lines(path, 100)) == 3
    assert len(read_lines(path, 1)) == 1
