"""The text of an answer as it grows: detokenized, and cut at the first stop string.

Stands between the sampler and the reader. Knows tokens and characters; knows no model.
"""

from collections.abc import Sequence

from shoal.client.text.stop_strings import StopStrings
from shoal.client.text.tokenizer import Tokenizer


class AnswerText:
    """The text of an answer as it grows: detokenized, and cut at the first stop string."""

    def __init__(self, tokenizer: Tokenizer | None, stop: Sequence[str]) -> None:
        self._detokenizer = tokenizer.detokenizer() if tokenizer else None
        self._stop = StopStrings(stop)
        self.is_stopped = False
        """Whether a stop string has ended the answer."""

    def push(self, token_id: int) -> str:
        """Text that may be shown now. Without a tokenizer there is none."""
        return self._cut(self._detokenizer.push(token_id)) if self._detokenizer else ""

    def end(self) -> str:
        """What was held back, when no more tokens come."""
        rest = self._cut(self._detokenizer.flush()) if self._detokenizer and not self.is_stopped else ""
        return rest if self.is_stopped else rest + self._stop.flush()

    def _cut(self, piece: str) -> str:
        matched = self._stop.push(piece)
        self.is_stopped = self.is_stopped or matched.is_stopped
        return matched.text
