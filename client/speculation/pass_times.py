"""What passes took lately, by how many rows they carried, and what others may take by that.

Between the engine, which measures, and `width.py`, which asks. A median per number of rows is robust against a pass
that met a failover; samples grow stale, so that a number of rows that was slow once is tried again. Knows no clock.
"""

from collections import deque
from statistics import median

SAMPLES = 16
"""Of each number of rows."""

STALE_AFTER = 256
"""Passes after which a sample says nothing any more: other load, another swarm, a longer context."""

ENOUGH = 2
"""Samples of a number of rows that are believed: one may be an accident."""

PRIOR_SLOPE = 0.05
"""How much longer a pass takes for another row, as a share, before that is known: hopeful, so that it is tried."""


class PassTimes:
    """Seconds by rows."""

    def __init__(self) -> None:
        self._samples: dict[int, deque[tuple[int, float]]] = {}
        self._medians: dict[int, float] = {}  # of those with enough samples: asked for several times a pass
        self._num_passes = 0

    def add(self, num_rows: int, seconds: float) -> None:
        """A pass is over."""
        self._num_passes += 1
        self._samples.setdefault(num_rows, deque(maxlen=SAMPLES)).append((self._num_passes, seconds))
        self._count(num_rows)
        self._forget()

    def has_baseline(self, num_rows: int) -> bool:
        """Whether passes of so many rows, or fewer, are known well enough to compare others with them."""
        return any(rows <= num_rows for rows in self._medians)

    def estimate(self, num_rows: int) -> float:
        """Seconds that a pass with so many rows takes: measured, or on the line through what was measured."""
        known = self._medians
        if num_rows in known:
            return known[num_rows]
        if not known:
            return 1.0  # any number: all widths are compared by it
        nearest = min(known, key=lambda rows: abs(rows - num_rows))
        return max(0.0, known[nearest] + (num_rows - nearest) * _slope(known, nearest))

    def _count(self, rows: int) -> None:
        samples = self._samples.get(rows, ())
        self._medians.pop(rows, None)
        if len(samples) >= ENOUGH:
            self._medians[rows] = median(seconds for _, seconds in samples)

    def _forget(self) -> None:
        oldest = self._num_passes - STALE_AFTER
        for rows, samples in list(self._samples.items()):
            if samples[0][0] > oldest:
                continue
            while samples and samples[0][0] <= oldest:
                samples.popleft()
            if not samples:
                del self._samples[rows]
            self._count(rows)


def _slope(known: dict[int, float], nearest: int) -> float:
    """Seconds per row between the fewest and the most rows that are known; never falling."""
    least, most = min(known), max(known)
    if least == most:
        return PRIOR_SLOPE * known[nearest]
    return max(0.0, (known[most] - known[least]) / (most - least))
