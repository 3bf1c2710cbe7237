"""Drafts from the text itself: where the last tokens stood before, what came next may come again (prompt lookup).

The method of Saxena, "Prompt Lookup Decoding" (2023), and of vLLM's n-gram proposer. Costs no arithmetic, and answers
that quote, translate names or repeat themselves are full of such places. Pure but for the seam. Knows ids only.
"""

from collections.abc import Sequence

from torch import Tensor

from shoal.client.speculation.drafter import Drafts, Wish

MIN_MATCH = 3
"""Tokens that must agree. On the demonstration model, beside MTP, 3 gives 3.2 tokens a pass at width 4; shorter ones
guess more often and worse (docs/adr/0025)."""

MAX_MATCH = 8
"""More agreement than this says no more."""

LOOKBACK = 2048
"""Tokens that are searched: 0.2 ms of the event loop's time."""


class NgramDrafter:
    """Implements `Drafter` by `lookup`."""

    wants_states = False

    def __init__(self, min_match: int = MIN_MATCH) -> None:
        self._min_match = min_match

    def saw(self, stream: object, start: int, states: Tensor) -> None:
        """See `Drafter`: of no use here."""

    async def draft(self, wishes: Sequence[Wish]) -> list[Drafts]:
        """See `Drafter`."""
        return [lookup(_text(wish), wish.width, self._min_match) for wish in wishes]


def lookup(ids: Sequence[int], width: int, min_match: int = MIN_MATCH) -> Drafts:
    """What followed the longest earlier match of the last ids, the latest of equally long ones; none below min_match.

    The match may overlap its own continuation, so that a loop of one token is drafted too: copies then go round.
    """
    recent = list(ids[-LOOKBACK:])
    last, best_len, best_end = len(recent) - 1, min_match - 1, -1
    for end in range(last - 1, min_match - 2, -1):
        if recent[end] != recent[last]:
            continue
        length = _agreement(recent, end)
        if length > best_len:
            best_len, best_end = length, end
            if length == MAX_MATCH:
                break
    if best_end < 0:
        return ()
    period = last - best_end
    return tuple(recent[best_end + 1 + i % period] for i in range(width))


def _text(wish: Wish) -> Sequence[int]:
    return [*wish.ids[-LOOKBACK:], *wish.guessed] if wish.guessed else wish.ids


def _agreement(ids: list[int], end: int) -> int:
    """How many tokens up to place `end` agree with the last ones, `MAX_MATCH` at most."""
    most = min(end + 1, MAX_MATCH)
    return next((n for n in range(most) if ids[end - n] != ids[-1 - n]), most)
