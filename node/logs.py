"""Where a node's events go: a rotating file of JSON lines, stderr (for people on a terminal, JSON elsewhere), memory.

The memory is what `shoal logs` reads through the control socket. Set up once by the daemon's process; a library never
does.
"""

import asyncio
import logging
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

import msgspec
from platformdirs import user_state_path

from shoal.node.log_events import LibrarySaid, LogEvent, LogNotWritten, fields_of, log_event, name_of
from shoal.protocol.control import MAX_LOG_LINES, LogLine

MAX_FILE_BYTES = 5_000_000
NUM_OLD_FILES = 3
"""20 MB in all: weeks of a node at level info."""

MAX_MESSAGE_CHARACTERS = 300
"""Of a library's message: enough to look it up."""

MAX_BEHIND = 1000
"""Lines that a follower may be behind; then the oldest are dropped."""


def state_dir() -> Path:
    """Where logs and transfer counts live, e.g. `~/.local/state/shoal`; honours `XDG_STATE_HOME`."""
    return user_state_path("shoal")


def log_path(directory: Path, name: str) -> Path:
    """The log file of the node of this name."""
    return directory / f"{name}.log"


def is_worth_a_line(record: logging.LogRecord) -> bool:
    """Events of the catalogue, and what libraries warn of."""
    return hasattr(record, "event") or record.levelno >= logging.WARNING


def line_of(record: logging.LogRecord) -> LogLine:
    """A log record as an event of the catalogue."""
    event = getattr(record, "event", None)
    if not isinstance(event, LogEvent):
        event = _library_said(record)
    return LogLine(record.created, record.levelname.lower(), name_of(type(event)), fields_of(event))  # type: ignore[arg-type]


def read_lines(path: Path, num_lines: int) -> list[LogLine]:
    """The last lines of a log file; what is no line of ours is left out."""
    lines = deque[LogLine](maxlen=num_lines)
    with path.open("rb") as file:
        for line in file:
            with suppress(msgspec.DecodeError, UnicodeDecodeError):
                lines.append(msgspec.json.decode(line, type=LogLine))
    return list(lines)


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        return msgspec.json.encode(line_of(record)).decode()


class HumanFormatter(logging.Formatter):
    """Time, level, sentence."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        event = getattr(record, "event", None)
        return f"{at} {record.levelname.lower():<7} {event if isinstance(event, LogEvent) else _library_said(record)}"


class LogFile(RotatingFileHandler):
    """The file. On a full disk its lines are lost and the node goes on; it is said once, to those who listen."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=MAX_FILE_BYTES, backupCount=NUM_OLD_FILES, encoding="utf-8")
        self._is_failing = self._has_failed = False

    def emit(self, record: logging.LogRecord) -> None:
        self._has_failed = False
        super().emit(record)
        self._is_failing = self._is_failing and self._has_failed

    def handleError(self, record: logging.LogRecord) -> None:  # logging's name
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self._has_failed = True
        if not self._is_failing:
            self._is_failing = True
            log_event(LogNotWritten(type(error).__name__, os.strerror(error.errno or 0)))
            self._has_failed = True  # the event came this way too

    def close(self) -> None:
        with suppress(OSError):  # what is still in its buffer, which the disk does not take
            super().close()


class LogMemory(logging.Handler):
    """The last lines, and those who follow.

    Limits: `MAX_LOG_LINES` lines; a follower that is `MAX_BEHIND` lines behind loses the oldest.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self._lines: deque[LogLine] = deque(maxlen=MAX_LOG_LINES)
        self._followers: set[asyncio.Queue[LogLine]] = set()

    def emit(self, record: logging.LogRecord) -> None:
        line = line_of(record)
        with suppress(RuntimeError):  # a library's thread that logs after the loop's end
            self._loop.call_soon_threadsafe(self._take, line)

    def last(self, num_lines: int) -> list[LogLine]:
        """The last lines so far."""
        return list(self._lines)[len(self._lines) - min(num_lines, len(self._lines)) :]

    async def follow(self) -> AsyncIterator[LogLine]:
        """Every line from now on. Cancellation: loses nothing of others."""
        queue: asyncio.Queue[LogLine] = asyncio.Queue(MAX_BEHIND)
        self._followers.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._followers.discard(queue)

    def _take(self, line: LogLine) -> None:
        self._lines.append(line)
        for queue in self._followers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(line)


@contextmanager
def logging_to(
    path: Path, level: str, loop: asyncio.AbstractEventLoop, stream: TextIO | None = None
) -> Iterator[LogMemory]:
    """Send everything that is logged inside the `with` to the file, to `stream` (None: stderr) and to memory.

    Raises:
        OSError: the file can not be written.
    """
    stream = stream or sys.stderr
    path.parent.mkdir(parents=True, exist_ok=True)
    file = LogFile(path)
    file.setFormatter(JsonFormatter())
    screen = logging.StreamHandler(stream)
    screen.setFormatter(HumanFormatter() if stream.isatty() else JsonFormatter())
    memory = LogMemory(loop)
    root = logging.getLogger()
    before = root.level
    for handler in (file, screen, memory):
        handler.addFilter(is_worth_a_line)
        root.addHandler(handler)
    root.setLevel(level.upper())
    try:
        yield memory
    finally:
        root.setLevel(before)
        for handler in (file, screen, memory):
            root.removeHandler(handler)
            handler.close()


def _library_said(record: logging.LogRecord) -> LibrarySaid:
    error = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None
    return LibrarySaid(record.name, " ".join(record.getMessage().split())[:MAX_MESSAGE_CHARACTERS], error)
