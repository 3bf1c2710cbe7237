"""Stop strings, found across token boundaries.

Stands between the detokenizer and the user. Text that may be the beginning of a stop string is held back until it is
known not to be. Knows characters; knows no tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Matched:
    """Text that may be shown, and whether a stop string ended it."""

    text: str
    is_stopped: bool


class StopStrings:
    """Matches the stop strings of one generation.

    The stop string that is complete first ends the text, and among those that end at the same character the longest:
    then the result does not depend on how the text was cut into pieces.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = sorted(stop, key=len, reverse=True)
        self._held = ""

    def push(self, piece: str) -> Matched:
        """Add text. After a match nothing more may be pushed."""
        held = self._held + piece
        start = self._match_start(held)
        if start is not None:
            self._held = ""
            return Matched(held[:start], is_stopped=True)
        num_shown = len(held) - self._len_of_possible_beginning(held)
        self._held = held[num_shown:]
        return Matched(held[:num_shown], is_stopped=False)

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _match_start(self, text: str) -> int | None:
        """Where the stop string starts that ends the text."""
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stop if stop in text]
        return min(found)[1] if found else None

    def _len_of_possible_beginning(self, text: str) -> int:
        """Length of the longest end of text that some stop string begins with."""
        longest = len(self._stop[0]) - 1 if self._stop else 0
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
