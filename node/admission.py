"""Admission: whether a request is let in at all (R7). Over a limit the answer is BUSY with a time, never a queue.

One request has an exactly known cost, rows x 3·H·I multiply-accumulates, so the backlog is counted in those and the
time to work it off is known. Knows no tensors.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shoal.protocol.errors import Busy, Draining

INITIAL_MACS_PER_S = 5e9
"""Assumed speed before the first call was timed: a slow laptop's core. Replaced by measurement at once."""

SMOOTHING = 0.2
"""Weight of the newest call in the measured speed: follows a change within about ten calls."""

MAX_WIRE_BACKLOG_S = 1.0
"""Answers that wait longer for the owner's limit on bytes come after their deadline: replicas are the better answer."""


def no_backlog() -> float:
    """Of a wire without limits."""
    return 0.0


class Admission:
    """The backlog of one node.

    Limits: at most `max_macs` multiply-accumulates admitted and unfinished; a single request above that is let in only
    when the node is idle, so that no request is impossible for ever.
    """

    def __init__(self, max_macs: int, wire_backlog_s: Callable[[], float] = no_backlog) -> None:
        """wire_backlog_s: how long answers that are ready will take to be sent under the owner's limit."""
        self._wire_backlog_s = wire_backlog_s
        self._max_macs = max_macs
        self._macs = 0
        self._macs_per_s = INITIAL_MACS_PER_S
        self._num_admitted = 0
        self._is_draining = False
        self._changed = asyncio.Event()

    @property
    def num_admitted(self) -> int:
        """Requests that were let in and are not finished."""
        return self._num_admitted

    @property
    def backlog_s(self) -> float:
        """Time to work off what is admitted, in seconds."""
        return self._macs / self._macs_per_s

    @property
    def macs_per_s(self) -> float:
        return self._macs_per_s

    def drain(self) -> None:
        """Refuse everything from now on, until `reopen`."""
        self._is_draining = True

    def reopen(self) -> None:
        """Let requests in again."""
        self._is_draining = False

    async def until_idle(self) -> None:
        """Return when everything that was let in has finished."""
        while self._num_admitted:
            self._changed.clear()
            await self._changed.wait()

    @contextmanager
    def admit(self, macs: int) -> Iterator[None]:
        """Hold room for one request.

        Raises:
            Busy: a backlog is full; says when it will have room. Draining: the node is leaving.
        """
        if self._is_draining:
            raise Draining("this node is leaving")
        if self._macs and self._macs + macs > self._max_macs:
            raise Busy("the node's backlog is full", max(0.01, self.backlog_s))
        if (wire_backlog_s := self._wire_backlog_s()) > MAX_WIRE_BACKLOG_S:
            raise Busy("the owner's limit on bytes is reached", wire_backlog_s)
        self._macs += macs
        self._num_admitted += 1
        try:
            yield
        finally:
            self._macs -= macs
            self._num_admitted -= 1
            self._changed.set()

    def observe(self, macs: int, compute_s: float) -> None:
        """Learn the speed from one finished call."""
        if compute_s > 0:
            self._macs_per_s += SMOOTHING * (macs / compute_s - self._macs_per_s)
