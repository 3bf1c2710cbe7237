"""How far drafts were right lately: the chance that the first one, the first two, … are.

Between the engine, which compares, and `width.py`, which asks. Knows counts only.
"""

from shoal.client.speculation.width import MAX_WIDTH

WEIGHT = 1 / 32
"""Of the newest pass: what a text is like changes within a few sentences."""

PRIOR = 0.7
"""Chance of one more draft being right before anything is known: hopeful, so that it is tried."""

FORGETTING = 1 / 512
"""How far every pass without drafts goes back to the prior: a width of 0 must not be forever."""


class Acceptance:
    """Running means over passes."""

    def __init__(self, max_width: int = MAX_WIDTH) -> None:
        self._prior = [PRIOR ** (i + 1) for i in range(max_width)]
        self._chances = list(self._prior)

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
            self._chances[i] += WEIGHT * ((i < accepted) - self._chances[i])
        if asked == 0:
            self._chances = [c + FORGETTING * (p - c) for c, p in zip(self._chances, self._prior, strict=True)]
