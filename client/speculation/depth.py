"""How many passes of drafts should be under way at a time: a pure function of what was measured (docs/adr/0035).

A pass that follows begins with a guess of the token that the pass before it will bring, and all that follow are thrown
away at the first wrong draft. So what counts is how long a run of right drafts gets, how much later each pass enters
than the one before it, and how much slower the first one becomes by that.
"""

from dataclasses import dataclass

from shoal.client.speculation.width import MARGIN

MAX_DEPTH = 4
"""Passes of one stream under way at a time, where nobody says how many: with seven rows each 28 guesses, of which the
last is right in texts that repeat themselves and nearly nowhere else."""

MAX_PASSES = 32
"""Passes that a run is followed for in the calculation: what comes after them changes nothing."""

MAX_CHANCE = 0.98
"""Of one more draft being right: a run has an end."""


@dataclass(frozen=True, slots=True)
class Pursued:
    """What the choice depends on. Seconds."""

    num_rows: int
    """Of one pass."""
    pass_s: float
    """Of a pass that nothing follows, its drafting included."""
    followed_s: float
    """Of a pass that others follow, its drafting included."""
    enter_s: float
    """From when there is room for one more pass until it enters: its drafting, and the wait for the trunk."""
    chance: float
    """That a draft is right if all before it were."""


def best_depth(pursued: Pursued, max_depth: int = MAX_DEPTH) -> int:
    """As many passes as each promise to be worth their traffic: `MARGIN` more tokens per second than one fewer. 1:
    nothing should follow."""
    depth = 1
    while depth < max_depth and tokens_per_s(pursued, depth + 1) > MARGIN * tokens_per_s(pursued, depth):
        depth += 1
    return depth


def tokens_per_s(pursued: Pursued, depth: int) -> float:
    """What a stream is expected to get, from a pass on until the first wrong draft is found, or, where nothing follows,
    in one pass."""
    rows, chance = pursued.num_rows, min(pursued.chance, MAX_CHANCE)
    if depth == 1:
        return sum(chance**i for i in range(rows)) / max(pursued.pass_s, 1e-9)
    entered = _entries(pursued, depth)
    # a pass is waited for if all guesses before it were right: `rows` of each pass ahead
    seconds = pursued.followed_s + sum(
        (entered[m] - entered[m - 1]) * chance ** (m * rows) for m in range(1, MAX_PASSES)
    )
    return (1 - chance ** (rows * MAX_PASSES)) / (1 - chance) / max(seconds, 1e-9)


def _entries(pursued: Pursued, depth: int) -> list[float]:
    """When each pass enters, if the one before it does: as soon as it can and no more than `depth` are under way."""
    entered = [0.0]
    for m in range(1, MAX_PASSES):
        room = entered[m - depth] + pursued.followed_s if m >= depth else 0.0
        entered.append(max(entered[-1], room) + pursued.enter_s)
    return entered
