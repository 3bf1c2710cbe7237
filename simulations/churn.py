"""Who dies and when: victims that leave a holder of every expert, and the times of a churn. Pure: chance is given."""

import math
import random
from collections import Counter
from collections.abc import Sequence

from shoal.protocol.errors import InvalidRequest


def count_of(words: str, num_nodes: int) -> int:
    """How many nodes `--kill` means: a count (`2`), or a share of all, rounded up (`0.3`, `30%`).

    Raises:
        InvalidRequest: neither.
    """
    try:
        number = float(words.removesuffix("%")) / (100 if words.endswith("%") else 1)
    except ValueError:
        raise InvalidRequest(f"how many to kill is a count or a share, not {words!r}") from None
    if not 0 <= number < math.inf or (number >= 1 and (number != int(number) or "%" in words)):
        raise InvalidRequest(f"how many to kill is a whole count, or a share below 1, not {words!r}")
    return math.ceil(number * num_nodes - 1e-9) if number < 1 else int(number)


def victims(parts: Sequence[str], count: int, chance: random.Random, first: int | None = None) -> list[int]:
    """`count` positions of `parts`, what each node holds, such that every part keeps a holder; `first` if it can be.

    Raises:
        InvalidRequest: there are no so many.
    """
    left, chosen = Counter(parts), list[int]()
    order = chance.sample(range(len(parts)), len(parts))
    order.sort(key=lambda position: position != first)
    for position in order:
        if len(chosen) < count and left[parts[position]] > 1:
            left[parts[position]] -= 1
            chosen.append(position)
    if len(chosen) < count:
        raise InvalidRequest(
            f"{count} of {len(parts)} nodes can not die and leave a holder of every expert: at most {len(chosen)}"
        )
    return chosen


def pause_until_next_s(per_node_and_hour: float, num_nodes: int, chance: random.Random) -> float:
    """Seconds until the next death of a churn: deaths are independent, so the pauses are exponential."""
    return chance.expovariate(per_node_and_hour * num_nodes / 3600)
