"""How far many seeds are: a bar on a terminal, a line a minute elsewhere; a broken promise is told when it is found."""

import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Self

from shoal.cli.options import program
from shoal.cli.progress import RateBar
from shoal.client.translate import _

if TYPE_CHECKING:
    from shoal.simulations.virtual.ledger import SoakResult

LINE_EVERY_S = 60.0


class SeedsProgress:
    """Call it with what is known so far, the first time before anything is run."""

    def __init__(self, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._bar = RateBar()
        self._count = count
        self._clock = clock
        self._started: tuple[float, int] | None = None
        self._said_at = 0.0
        self._num_told = 0

    def __call__(self, result: "SoakResult") -> None:
        now = self._clock()
        if self._started is None:
            self._started, self._said_at, self._num_told = (now, result.num_seeds), now, len(result.failed)
        for failure in result.failed[self._num_told :]:
            self._bar.say(f"{failure.problem}\n    {program()} simulate seed {failure.seed}")
        self._num_told = len(result.failed)
        self._bar("seeds", result.num_seeds, self._count)
        if not self._bar.is_shown and now - self._said_at >= LINE_EVERY_S:
            self._said_at = now
            self._bar.say(self._line(result, now, *self._started))

    def _line(self, result: "SoakResult", now: float, started_at: float, begun_with: int) -> str:
        rate = max((result.num_seeds - begun_with) / (now - started_at), 1e-9)
        left = timedelta(seconds=round((self._count - result.num_seeds) / rate))
        words = _("{done} of {count} seeds, {rate}/s, {left} left, {failed} broke a promise")
        return words.format(
            done=result.num_seeds, count=self._count, rate=f"{rate:.1f}", left=left, failed=len(result.failed)
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
