"""How sides are compared on one machine that does other things too: short blocks of calls in turns, and robust figures.

A block of one side and the block of another beside it meet the same neighbours, clock and memory, so their ratio holds
where a ratio of medians over the whole run moves with the machine. Knows no kernels.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter, sleep

PAUSE_S = 0.01
"""Before each block: lets the other sides' threads go to sleep (libgomp's spin for milliseconds after a call)."""

CALLS_PER_BLOCK = 4
"""The first of a block warms up and is not counted."""

TIME_S = 4.0
MIN_ROUNDS, MAX_ROUNDS = 5, 40

Call = Callable[[int], object]
"""Run call number i; the number chooses the weights."""

Blocks = list[list[float]]
"""Seconds of the counted calls of one side, block by block."""


@dataclass(frozen=True, slots=True)
class Middle:
    """A median, and half the distance between the quartiles."""

    median: float
    spread: float


def middle(values: Sequence[float]) -> Middle:
    """Of at least one value; a single one has no spread."""
    if len(values) < 2:
        return Middle(statistics.median(values), 0.0)
    quarters = statistics.quantiles(values, n=4)
    return Middle(statistics.median(values), (quarters[2] - quarters[0]) / 2)


def all_calls(blocks: Blocks) -> list[float]:
    """Every counted call."""
    return [seconds for block in blocks for seconds in block]


def paired_ratio(ours: Blocks, baseline: Blocks) -> Middle:
    """The middle of the ratios of blocks that ran beside each other, each block standing for its median call.

    Raises:
        ValueError: the sides have run different numbers of blocks.
    """
    pairs = zip(ours, baseline, strict=True)
    return middle([statistics.median(one) / statistics.median(other) for one, other in pairs])


def take_turns(sides: Sequence[Call], time_s: float = TIME_S) -> list[Blocks]:
    """Blocks of each side. Who begins changes every round, so that nobody always runs behind the same side."""
    blocks: list[Blocks] = [[] for _ in sides]
    started = perf_counter()
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and perf_counter() - started > time_s:
            break
        for side in order(len(sides), number):
            sleep(PAUSE_S)
            blocks[side].append(block(sides[side], number * CALLS_PER_BLOCK))
    return blocks


def order(num_sides: int, round_number: int) -> list[int]:
    """Sides of a round, one further each round."""
    first = round_number % num_sides
    return [*range(first, num_sides), *range(first)]


def block(call: Call, first: int, num_calls: int = CALLS_PER_BLOCK) -> list[float]:
    """Seconds of calls `first + 1` to `first + num_calls - 1`; call `first` warms up."""
    return [seconds(call, number) for number in range(first, first + num_calls)][1:]


def seconds(call: Call, number: int) -> float:
    """How long one call takes."""
    started = perf_counter()
    call(number)
    return perf_counter() - started
