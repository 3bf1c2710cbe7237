"""Admission: whether a request is let in at all (R7). Over a limit the answer is BUSY with a time, never a queue.

One request has an exactly known cost, rows x 3·H·I multiply-accumulates, so the backlog is counted in those and the
time to work it off is known. Knows no tensors.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from shoal.protocol.errors import Busy, Draining

INITIAL_MACS_PER_S = 5e9
"""Assumed speed before the first call was timed: a slow laptop's core. Replaced by measurement at once."""

SMOOTHING = 0.2
"""Weight of the newest call in the measured speed: follows a change within about ten calls."""


class Admission:
    """The backlog of one node.

    Limits: at most `max_macs` multiply-accumulates admitted and unfinished; a single request above that is let in only
    when the node is idle, so that no request is impossible for ever.
    """

    def __init__(self, max_macs: int) -> None:
        self._max_macs = max_macs
        self._macs = 0
        self._macs_per_s = INITIAL_MACS_PER_S
        self._is_draining = False

    @property
    def backlog_s(self) -> float:
        """Time to work off what is admitted, in seconds."""
        return self._macs / self._macs_per_s

    @property
    def macs_per_s(self) -> float:
        return self._macs_per_s

    def drain(self) -> None:
        """Refuse everything from now on."""
        self._is_draining = True

    @contextmanager
    def admit(self, macs: int) -> Iterator[None]:
        """Hold room for one request.

        Raises:
            Busy: the backlog is full; says when it will have room. Draining: the node is leaving.
        """
        if self._is_draining:
            raise Draining("this node is leaving")
        if self._macs and self._macs + macs > self._max_macs:
            raise Busy("the node's backlog is full", max(0.01, self.backlog_s))
        self._macs += macs
        try:
            yield
        finally:
            self._macs -= macs

    def observe(self, macs: int, compute_s: float) -> None:
        """Learn the speed from one finished call."""
        if compute_s > 0:
            self._macs_per_s += SMOOTHING * (macs / compute_s - self._macs_per_s)
