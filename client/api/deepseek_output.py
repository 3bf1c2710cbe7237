"""What a DeepSeek-V3.1 answer is made of, told while it grows: reasoning, text, tool calls.

    reasoning</think>text<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>ARGUMENTS<｜tool▁call▁end｜>…<｜tool▁calls▁end｜>

(deepseek-ai/DeepSeek-V3.1, model card, "Toolcall"). The prompt decides whether the answer begins with reasoning: it
ends with `<think>` then. What is told depends on the text only and not on how it was cut into pieces. Knows no tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

THINK_BEGIN, THINK_END = "<think>", "</think>"
CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, CALL_SEP, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of the model's thinking."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegins:
    """A tool call; its arguments follow."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of a call's arguments: JSON, in pieces."""

    index: int
    text: str


Part = Reasoning | Content | CallBegins | CallArguments


class _State(Enum):
    """Where in the answer we are."""

    BEGIN = "begin"
    """Nothing yet: `<think>` may come."""
    REASONING = "reasoning"
    TEXT = "text"
    BETWEEN_CALLS = "between calls"
    NAME = "name"
    ARGUMENTS = "arguments"


_NEXT = {  # the markers that end a state, and where each leads
    _State.REASONING: {THINK_END: _State.TEXT},
    _State.TEXT: {CALLS_BEGIN: _State.BETWEEN_CALLS},
    _State.BETWEEN_CALLS: {CALL_BEGIN: _State.NAME, CALLS_END: _State.TEXT},
    _State.NAME: {CALL_SEP: _State.ARGUMENTS},
    _State.ARGUMENTS: {CALL_END: _State.BETWEEN_CALLS},
}


class DeepSeekOutput:
    """Parses one answer."""

    def __init__(self, *, begins_with_reasoning: bool, parses_calls: bool) -> None:
        """parses_calls: whether tools were offered; without, their markers are text like any other."""
        self._state = _State.REASONING if begins_with_reasoning else _State.BEGIN
        self._parses_calls = parses_calls
        self._held = ""
        self._num_calls = 0

    @property
    def is_reasoning(self) -> bool:
        return self._state is _State.REASONING

    @property
    def has_calls(self) -> bool:
        """Whether any call has begun."""
        return self._num_calls > 0

    def push(self, text: str) -> list[Part]:
        """Add text; what it makes certain."""
        self._held += text
        return list(self._advance())

    def end(self) -> list[Part]:
        """What was held back, when no more text comes. A call whose name is not complete is told as text."""
        if self._state is _State.NAME:
            return [Content(CALL_BEGIN + self._take(len(self._held)))]
        self._state = _State.TEXT if self._state is _State.BEGIN else self._state
        return list(self._told(self._take(len(self._held))))

    def _advance(self) -> Iterator[Part]:
        while True:
            if self._state is _State.BEGIN and not self._leave_begin():
                return
            markers = self._markers()
            found = min(((at, marker) for marker in markers if (at := self._held.find(marker)) >= 0), default=None)
            if found is None:
                if self._state is not _State.NAME:  # a name is told whole
                    yield from self._told(self._take(len(self._held) - self._len_of_possible_marker(list(markers))))
                return
            at, marker = found
            yield from self._told(self._take(at))
            self._take(len(marker))
            self._state = markers[marker]

    def _leave_begin(self) -> bool:
        """Whether the text's beginning is decided."""
        if self._held.startswith(THINK_BEGIN):
            self._take(len(THINK_BEGIN))
            self._state = _State.REASONING
        elif not THINK_BEGIN.startswith(self._held):
            self._state = _State.TEXT
        return self._state is not _State.BEGIN

    def _markers(self) -> dict[str, _State]:
        is_plain = self._state is _State.TEXT and not self._parses_calls
        return {} if is_plain else _NEXT[self._state]

    def _told(self, text: str) -> Iterator[Part]:
        """What this text, of the present state, is. Text between calls is layout."""
        match self._state:
            case _State.NAME:
                yield CallBegins(self._num_calls, text.strip())
                self._num_calls += 1
            case _State.REASONING if text:
                yield Reasoning(text)
            case _State.TEXT if text:
                yield Content(text)
            case _State.ARGUMENTS if text:
                yield CallArguments(self._num_calls - 1, text)

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        return taken

    def _len_of_possible_marker(self, markers: list[str]) -> int:
        """Length of the longest end of the held text that some marker begins with."""
        longest = max((len(marker) for marker in markers), default=1) - 1
        lengths = range(min(longest, len(self._held)), 0, -1)
        return next((size for size in lengths if any(m.startswith(self._held[-size:]) for m in markers)), 0)
