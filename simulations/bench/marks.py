"""Moments of an exchange: functions of the program that tell when they begin and end, for a time budget.

A benchmark wraps them in its own processes only; nothing of the program knows. The clock is the machine's monotonic
one, so that the moments of client and nodes can be laid on one line. A mark costs 0.2 us.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from time import perf_counter
from typing import Any


@dataclass(frozen=True, slots=True)
class Spot:
    """A function: an attribute of a class or module. `before`, `after`: what its beginning and end are called; empty:
    not told. An async function's end is that of its call, not of its awaiting."""

    owner: Any
    name: str
    before: str = ""
    after: str = ""


@dataclass(slots=True)
class Marks:
    """What was told, in order: name, seconds."""

    found: list[tuple[str, float]] = field(default_factory=list)

    def mark(self, name: str) -> None:
        """Tell a moment."""
        self.found.append((name, perf_counter()))


@contextmanager
def marking(spots: Sequence[Spot]) -> Iterator[Marks]:
    """Let these functions tell their moments inside the `with`."""
    marks, plain = Marks(), [getattr(spot.owner, spot.name) for spot in spots]
    for spot, function in zip(spots, plain, strict=True):
        setattr(spot.owner, spot.name, _telling(function, spot, marks.found))
    try:
        yield marks
    finally:
        for spot, function in zip(spots, plain, strict=True):
            setattr(spot.owner, spot.name, function)


def _telling(function: Callable[..., Any], spot: Spot, found: list[tuple[str, float]]) -> Callable[..., Any]:
    before, after = spot.before, spot.after

    @wraps(function)
    def telling(*args: Any) -> Any:
        if before:
            found.append((before, perf_counter()))
        result = function(*args)
        if after:
            found.append((after, perf_counter()))
        return result

    return telling
