"""Which shares of a pass go through the layers together: each group is a wave, and waves overlap.

Those who decode go first, so that their frames stay small, in one group or more (`ping_pong.py`); then prompts, chunk
by chunk (docs/adr/0028-prefill.md). Between the scheduler's shares and the pass. Pure; knows no trunk.
"""

from collections.abc import Iterable

from shoal.client.engine.scheduler import Share

SMALL_WAVE_ROWS = 64
"""Rows up to which chunks of short prompts go together, and with those who decode: from there on arithmetic takes the
time and not the reading of weights (as `node/serving/batcher.py` has it), and company only makes everybody late."""


def grouped(decoding: list[Share], prompts: Iterable[Share], num_parts: int) -> list[list[Share]]:
    """The groups, in the order of the shares. num_parts: of those who decode; fewer where there are fewer of them."""
    groups = _parts(decoding, num_parts)
    for share in prompts:
        last = groups[-1] if groups else []
        is_small = num_rows(last) + share.num_rows <= SMALL_WAVE_ROWS
        if last and is_small and all(each.sequence is not share.sequence for each in last):
            last.append(share)
        else:
            groups.append([share])
    return groups


def num_certain(groups: Iterable[list[Share]]) -> int:
    """Waves that enter in any case: of all who decode and one more, or of one prompt, or prompts would starve where
    streams come and go."""
    return 1 + sum(group[0].sequence.is_decoding for group in groups)


def num_rows(shares: Iterable[Share]) -> int:
    """Of all of them."""
    return sum(share.num_rows for share in shares)


def _parts(decoding: list[Share], count: int) -> list[list[Share]]:
    """Neighbours together, about as many rows in each part; none is empty, so that there may be fewer parts."""
    total, before = num_rows(decoding), 0
    parts: list[list[Share]] = [[] for _ in range(count)]
    for share in decoding:
        parts[before * count // total].append(share)
        before += share.num_rows
    return [part for part in parts if part]
