"""In how many groups the streams that decode go through the layers: found out by trying, as passes go by.

While one group waits for its experts another one computes, so that trunk and wire both work. But every group has an
exchange of its own per layer and reads the trunk's weights once more. What that costs depends on model, contexts,
machine and network, so two numbers of groups take turns for a few passes and the faster one stays
(docs/adr/0034-ping-pong.md). Between `passes.py`, which asks, and the wavefront, which overlaps. Knows rows and
seconds; no streams and no chance.
"""

from dataclasses import dataclass, field
from statistics import median

from shoal.client.trunk.model import Timing
from shoal.protocol.events import Event, LayerTimed

MARGIN = 1.05
"""How much faster another number of groups must be, or could be at best, to be taken or tried: medians of a few passes
on a machine that does other things too differ by as much."""

FIRST_TRIAL_AFTER, LAST_TRIAL_AFTER = 16, 1024
"""Passes between two trials: doubled whenever one changes nothing. The worst loser that was measured (four groups on
loopback) takes twice the time, so the longest distance costs half a percent."""

TRIAL_PASSES = 3
"""Passes of either side of a trial, in turns."""

LIKE_SHARE = 1 / 8
"""By how much rows may differ in passes that are compared: drafts come and go."""


@dataclass(frozen=True, slots=True)
class PassTime:
    """What the layers took in a pass of nobody but streams that decode. Seconds."""

    num_rows: int
    num_groups: int
    """As many as there were; fewer than was asked for where there were fewer streams."""
    total_s: float
    waited_s: float
    """From dispatch to sum, of all groups and layers: of a single group, what the trunk could use."""

    @property
    def best_gain_s(self) -> float:
        """What two groups could save if the second one cost nothing: half of what is shorter, trunk or wait, is hidden
        behind the other."""
        return min(self.waited_s, self.total_s - self.waited_s) / 2


class Stopwatch:
    """Takes the time of a pass from its beginning, and hands events on that tell how long its waves waited."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._started = timing.clock()
        self._waited_s = 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, LayerTimed):
            self._waited_s += event.experts_s
        self._timing.observe(event)

    def pass_time(self, num_rows: int, num_groups: int) -> PassTime:
        """Until now."""
        return PassTime(num_rows, num_groups, self._timing.clock() - self._started, self._waited_s)


@dataclass(slots=True)
class _Trial:
    """Two numbers of groups that take turns."""

    current: int
    other: int
    num_rows: int
    """About as many as each of its passes has."""
    num_passes: int = 0
    times_s: dict[int, list[float]] = field(default_factory=dict)
    """By number of groups."""

    def wants(self) -> int:
        """Whose turn it is."""
        return self.other if self._count(self.other) < self._count(self.current) else self.current

    def is_like(self, num_rows: int) -> bool:
        return abs(num_rows - self.num_rows) <= LIKE_SHARE * self.num_rows

    def add(self, took: PassTime) -> None:
        self.num_passes += 1
        self.times_s.setdefault(took.num_groups, []).append(took.total_s)

    def is_over(self) -> bool:
        """Both have had their turns, or one of them does not come about: a single stream makes no two groups."""
        return self._has_both() or self.num_passes >= 4 * TRIAL_PASSES

    def is_won(self) -> bool:
        return self._has_both() and median(self.times_s[self.other]) * MARGIN < median(self.times_s[self.current])

    def _has_both(self) -> bool:
        return min(self._count(self.current), self._count(self.other)) >= TRIAL_PASSES

    def _count(self, num_groups: int) -> int:
        return len(self.times_s.get(num_groups, ()))


class PingPong:
    """Chooses for one engine."""

    def __init__(self, most: int, fixed: int | None = None) -> None:
        """most: groups that may be under way at a time. fixed: no choice."""
        self._most = most
        self._fixed = fixed
        self._current = 1
        self._tried_at_rows = 0
        self._trial: _Trial | None = None
        self._trial_after = FIRST_TRIAL_AFTER
        self._was_upward = False
        self._total_s = self._best_gain_s = 0.0  # since the last trial
        self._num_passes = 0

    def num_groups(self, num_rows: int) -> int:
        """Of the next pass, whose decoding streams have so many rows: 1 .. `most`."""
        if self._fixed is not None:
            return min(self._fixed, self._most)
        if 2 * num_rows < self._tried_at_rows:
            self._begin_anew()  # half of the streams are gone: what paid for them need not pay any more
        if self._trial is not None and self._trial.is_like(num_rows):
            return self._trial.wants()
        return self._current

    def took(self, time: PassTime) -> None:
        """A pass is over. Not for one that has carried a part of a prompt, or has failed."""
        if self._fixed is not None or self._most == 1:
            return
        if self._trial is None:
            self._note(time)
        elif not self._trial.is_like(time.num_rows):
            self._end_trial(is_won=False)  # streams have come or gone
        else:
            self._trial.add(time)
            if self._trial.is_over():
                self._end_trial(self._trial.is_won())

    def _note(self, time: PassTime) -> None:
        """A pass without a trial; one may be due."""
        if time.num_rows > 2 * self._tried_at_rows:
            self._tried_at_rows, self._trial_after = time.num_rows, FIRST_TRIAL_AFTER
        self._num_passes += 1
        self._total_s += time.total_s
        self._best_gain_s += time.best_gain_s
        if self._num_passes < self._trial_after:
            return
        can_gain = self._current > 1 or self._total_s > MARGIN * (self._total_s - self._best_gain_s)
        if can_gain and time.num_rows > 1:
            self._trial, self._tried_at_rows = _Trial(self._current, self._next(), time.num_rows), time.num_rows
        self._forget_passes()

    def _next(self) -> int:
        """A neighbour of what is: upwards and downwards in turn."""
        self._was_upward = self._current == 1 or (not self._was_upward and self._current < self._most)
        return self._current + (1 if self._was_upward else -1)

    def _end_trial(self, is_won: bool) -> None:
        if self._trial is not None and is_won:
            self._current, self._trial_after = self._trial.other, FIRST_TRIAL_AFTER
        else:
            self._trial_after = min(2 * self._trial_after, LAST_TRIAL_AFTER)
        self._trial = None
        self._forget_passes()

    def _begin_anew(self) -> None:
        self._current, self._trial, self._trial_after = 1, None, FIRST_TRIAL_AFTER
        self._tried_at_rows = 0
        self._forget_passes()

    def _forget_passes(self) -> None:
        self._num_passes, self._total_s, self._best_gain_s = 0, 0.0, 0.0
