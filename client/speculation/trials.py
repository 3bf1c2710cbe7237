"""When to try drafts again after they did not pay: seldom, and the more seldom the more often it was in vain.

Texts and networks change, so a width of 0 must not be for ever; but a trial costs passes that are wider than they need
be, and where passes take nothing but arithmetic that is time lost. So trials are a few passes long and the distance
between them doubles. Counts passes; knows no clock, no rows and no drafts.
"""

TRIAL_PASSES = 3
"""Passes of a trial: as many as it takes to believe what they took and to see some drafts judged."""

FIRST_REST, LAST_REST = 64, 2048
"""Passes without drafts after a trial that was in vain. A trial on loopback takes at most about three passes' time more
than it brings: under 5 % of the first rest, under 0.2 % of the last."""


TRIAL_WIDTH = 2
"""Drafts in the passes of a trial: enough to see whether the first ones are right, and little time if they are not."""

PAYS_AFTER = 32
"""Passes with drafts on end after which they are known to pay: the next rest is a short one again."""


class Trials:
    """Of one engine. At first the figures decide, which begin hopefully."""

    def __init__(self) -> None:
        self._rest = FIRST_REST
        self._num_left = 0
        self._num_tried = TRIAL_PASSES
        self._num_drafted = 0

    @property
    def is_resting(self) -> bool:
        """Whether nothing is to be drafted, whatever the figures say."""
        return self._num_left > 0

    @property
    def is_trying(self) -> bool:
        """Whether something is to be drafted, whatever the figures say."""
        return self._num_tried < TRIAL_PASSES

    def passed(self, has_drafted: bool) -> None:
        """A pass is over that could have had drafts."""
        if self.is_resting:
            self._num_left -= 1
            self._num_tried = TRIAL_PASSES if self.is_resting else 0
        elif has_drafted:
            self._num_tried += 1
            self._num_drafted += 1
            if self._num_drafted >= PAYS_AFTER:
                self._rest = FIRST_REST

    def in_vain(self) -> None:
        """Drafts do not pay."""
        self._num_left, self._num_tried, self._num_drafted = self._rest, TRIAL_PASSES, 0
        self._rest = min(2 * self._rest, LAST_REST)
