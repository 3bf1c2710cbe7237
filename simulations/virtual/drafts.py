"""A drafter whose luck a seed decides: it knows what the answer will be, and says something else now and then.

So passes verify right and wrong drafts in any mixture, which the text's own repetitions would not give in six tokens.
What is tried is the verification: a draft may cost time and never a token (docs/adr/0025).
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from shoal.client.speculation.drafter import Drafts, Wish

LONGEST_S = 0.01
"""Virtual seconds that a call may take: streams come and go meanwhile."""


@dataclass(frozen=True, slots=True)
class Drafting:
    """How the clients of a run speculate."""

    width: int
    """Drafts a stream and pass."""
    luck: float
    """How likely each draft is right, 0..1."""


class LuckyDrafter:
    """Implements `Drafter`."""

    wants_states = False

    def __init__(self, luck: float, texts: Sequence[Sequence[int]], num_ids: int, rng: random.Random) -> None:
        """texts: prompts and their answers, whole. num_ids: size of the vocabulary, from which wrong drafts come."""
        self._luck = luck
        self._texts = [list(text) for text in texts]
        self._num_ids = num_ids
        self._rng = rng

    def saw(self, stream: object, start: int, states: Tensor) -> None:
        """See `Drafter`: of no use here."""

    async def draft(self, wishes: Sequence[Wish]) -> list[Drafts]:
        """See `Drafter`."""
        await asyncio.sleep(LONGEST_S * self._rng.random())
        return [self._guess(list(wish.ids), wish.width) for wish in wishes]

    def _guess(self, ids: list[int], width: int) -> Drafts:
        text = next((text for text in self._texts if text[: len(ids)] == ids), ids)
        right = text[len(ids) : len(ids) + width]
        return tuple(
            token_id if self._rng.random() < self._luck else self._rng.randrange(self._num_ids) for token_id in right
        )
