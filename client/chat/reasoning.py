"""Splits an answer into what the model thought and what it says, while the text streams. Pure.

After detokenizing, before anyone shows it. `<think>` and `</think>` are DeepSeek's (chat template of DeepSeek-V3.1 and
R1). Any cutting of the same text into pieces gives the same two texts.
"""

from dataclasses import dataclass
from enum import Enum, auto

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Split:
    """What may be shown now."""

    text: str = ""
    reasoning: str = ""


class _Phase(Enum):
    BEFORE = auto()
    """Nothing but white space yet: a thought may begin."""
    THINKING = auto()
    ANSWERING = auto()
    """Marks are text now: somebody asked what they mean."""


class ReasoningSplitter:
    """Fed with pieces of one answer. `is_thinking`: the template has opened the thought already."""

    def __init__(self, is_thinking: bool = False) -> None:
        self._phase = _Phase.THINKING if is_thinking else _Phase.BEFORE
        self._held = ""

    def push(self, piece: str) -> Split:
        """Take a piece; hold back what may be the beginning of a mark."""
        self._held += piece
        if self._phase is _Phase.BEFORE:
            self._look_for_thought()
        reasoning = self._think() if self._phase is _Phase.THINKING else ""
        if self._phase is not _Phase.ANSWERING:
            return Split(reasoning=reasoning)
        text, self._held = self._held, ""
        return Split(text, reasoning)

    def end(self) -> Split:
        """What was held back, when nothing more comes."""
        rest, self._held = self._held, ""
        return Split(reasoning=rest) if self._phase is _Phase.THINKING else Split(rest)

    def _look_for_thought(self) -> None:
        seen = self._held.lstrip()
        if seen.startswith(OPEN):
            self._phase, self._held = _Phase.THINKING, seen.removeprefix(OPEN)
        elif not OPEN.startswith(seen):
            self._phase = _Phase.ANSWERING

    def _think(self) -> str:
        """The thought that is certain; the rest of what is held is the answer, or may be a mark."""
        thought, found, rest = self._held.partition(CLOSE)
        if found:
            self._phase, self._held = _Phase.ANSWERING, rest
            return thought
        keep = _overlap(self._held, CLOSE)
        certain = self._held[: len(self._held) - keep]
        self._held = self._held[len(certain) :]
        return certain


def _overlap(text: str, mark: str) -> int:
    """The length of the longest end of `text` that begins `mark`."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-n:])), 0)
