"""How far drafts were right lately: the chance that the first one, the first two, … are.

Between the engine, which compares, and `width.py` and `depth.py`, which ask. Knows counts only.
"""

from shoal.client.speculation.width import MAX_WIDTH

WEIGHT = 1 / 32
"""Of the newest pass: what a text is like changes within a few sentences."""

PRIOR = 0.7
"""Chance of one more draft being right before anything is known: hopeful, so that it is tried."""

PRIOR_PASSES = 2
"""Passes that the prior counts as much as: what is hoped is unlearned as fast as it was wrong."""


RUN_PRIOR = 0.8
"""Chance of one more draft being right, where all of the last pass were, before anything is known."""

RUN_PRIOR_DRAFTS = 10
"""Drafts that this prior counts as much as: two runs that end early unlearn it."""


class RunChance:
    """The chance of one more draft being right in a run of right ones: for texts that go on repeating themselves."""

    def __init__(self) -> None:
        self._num_right, self._num_judged = RUN_PRIOR * RUN_PRIOR_DRAFTS, float(RUN_PRIOR_DRAFTS)

    @property
    def value(self) -> float:
        return self._num_right / self._num_judged

    def add(self, num_right: int, is_whole: bool) -> None:
        """A run is over after so many right drafts; is_whole: not by a wrong one."""
        self._num_right += num_right - WEIGHT * self._num_right
        self._num_judged += num_right + (not is_whole) - WEIGHT * self._num_judged


class Acceptance:
    """Means over passes, running ones once there were some."""

    def __init__(self, max_width: int = MAX_WIDTH) -> None:
        self._chances = [PRIOR ** (i + 1) for i in range(max_width)]
        self._counts = [PRIOR_PASSES] * max_width

    @property
    def chances(self) -> tuple[float, ...]:
        """That at least i + 1 drafts are right, where so many are asked for; never rising."""
        falling, least = list[float](), 1.0
        for chance in self._chances:
            least = min(least, chance)
            falling.append(least)
        return tuple(falling)

    def add(self, asked: int, accepted: int) -> None:
        """A stream asked for some drafts and so many were right; asked for and not got counts as wrong."""
        for i in range(min(asked, len(self._chances))):
            self._counts[i] += 1
            self._chances[i] += max(WEIGHT, 1 / self._counts[i]) * ((i < accepted) - self._chances[i])
