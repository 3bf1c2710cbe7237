"""The last pieces of a fetch: when nothing else is to be begun, the slowest giver decides when a node is full.

A node whose last pieces come from slow lines, or stand in line at busy ones, leaves a few of them to another source
that has nothing to do. It costs the hub bytes that a peer would have given; so the number is part of the same budget as
help (`first_copies.py`). Pure: times are arguments, of one clock.
"""

JUDGE_S = 10.0
"""After so long a peer's pace is known."""

WORTH_FACTOR = 2.0
"""A piece is left for another source if that brings a whole one in half of what is left to wait."""


class LastPieces:
    """What is still to be begun, and how long what is on its way from peers will take."""

    def __init__(self) -> None:
        self._num_pending: int | None = None
        self._elsewhere_s = float("inf")
        self._left_s: dict[bytes, float] = {}

    def note(self, num_pending: int, elsewhere_s: float) -> None:
        """num_pending: pieces that are neither here nor on their way. elsewhere_s: what one takes from a source that
        has nothing to do now; infinity: from none."""
        self._num_pending, self._elsewhere_s = num_pending, elsewhere_s

    def are(self, num_most: int) -> bool:
        """Whether no more than so many are still to be begun, and another source has brought one and is idle."""
        is_few = self._num_pending is not None and self._num_pending <= num_most
        return is_few and self._elsewhere_s < float("inf")

    def flies(self, digest: bytes, missing_bytes: int, taken_bytes: int, took_s: float) -> None:
        """A piece comes at this pace from a peer."""
        if took_s >= JUDGE_S:
            self._left_s[digest] = missing_bytes * took_s / max(taken_bytes, 1)

    def ends(self, digest: bytes) -> None:
        """It is here, or does not come from there any more."""
        self._left_s.pop(digest, None)

    def is_better_elsewhere(self, digest: bytes) -> bool:
        """Whether it is the slowest of those on their way, nothing else is to be begun, and another source that is idle
        brings it much sooner."""
        left_s = self._left_s.get(digest)
        if left_s is None or not self.are(0) or left_s < max(self._left_s.values()):
            return False
        return left_s > WORTH_FACTOR * self._elsewhere_s
