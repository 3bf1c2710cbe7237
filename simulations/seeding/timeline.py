"""How busy the lines of a simulation were, step by step: where a fill loses its time."""

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.simulations.seeding.lines import STEP_S, Line

NUM_ROWS = 24
"""Rows of a time line, about."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A stretch of time. up, down: share of all lines' bytes that passed; num_full: machines that had everything."""

    begin_s: float
    up: float
    down: float
    num_full: int


def timeline(up: Sequence[Line], down: Sequence[Line], full_at_s: Sequence[float]) -> list[Moment]:
    """From the beginning until the last machine had everything."""
    last = int(max(full_at_s) // STEP_S)
    width = max(1, last // NUM_ROWS)
    return [
        Moment(
            begin * STEP_S,
            _used(up, begin, begin + width),
            _used(down, begin, begin + width),
            sum(full_s <= (begin + width) * STEP_S for full_s in full_at_s),
        )
        for begin in range(0, last + 1, width)
    ]


def _used(lines: Sequence[Line], begin: int, end: int) -> float:
    passed = sum(line.passed.get(step, 0) for line in lines for step in range(begin, end))
    return passed / (sum(line.bytes_per_s for line in lines) * STEP_S * (end - begin))
