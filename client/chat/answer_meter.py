"""How quickly an answer comes, counted by whoever reads it. Pure: the clock is handed in."""

from collections import deque
from collections.abc import Callable, Sequence

MAX_GAPS = 240
"""Token times that are kept for a curve: four screens wide."""


class AnswerMeter:
    """Started when a question is sent; told of every piece."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """clock: seconds."""
        self._clock = clock
        self._started = clock()
        self._first_at: float | None = None
        self._last_at = self._started
        self._gaps: deque[float] = deque(maxlen=MAX_GAPS)
        self.num_tokens = 0

    def add(self, num_tokens: int) -> None:
        """A piece of this many tokens has come, now."""
        if not num_tokens:
            return
        now = self._clock()
        if self._first_at is None:
            self._first_at = now
        else:
            self._gaps.extend([(now - self._last_at) / num_tokens] * num_tokens)
        self._last_at = now
        self.num_tokens += num_tokens

    @property
    def ttft_s(self) -> float | None:
        """From the question to the first token; None before it."""
        return None if self._first_at is None else self._first_at - self._started

    @property
    def tokens_per_s(self) -> float:
        """Of the tokens after the first; 0 while there are none."""
        elapsed = self._last_at - (self._first_at or self._last_at)
        return (self.num_tokens - 1) / elapsed if elapsed > 0 else 0.0

    @property
    def gaps_s(self) -> Sequence[float]:
        """Seconds from token to token, the latest last."""
        return self._gaps
