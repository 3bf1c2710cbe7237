"""The seam between whoever guesses tokens and the loop that has them verified.

A drafter may be wrong as often as it likes: that costs time and never a token. Knows ids and hidden states; knows no
sampling, no acceptance and no pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Drafts = tuple[int, ...]
"""What may come next, the nearest first; as many as the drafter has to offer, down to none."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A stream that would like drafts."""

    stream: object
    """Whose it is: the same object in every call, weakly referable."""
    ids: Sequence[int]
    """Prompt and answer so far; read in the call only."""
    width: int
    """Most drafts it can use, at least 1."""
    guessed: Drafts = ()
    """Guesses after `ids` that are being verified, whoever made them: what is drafted comes after them."""


class Drafter(Protocol):
    """Guesses what comes next in several streams at once. One call at a time."""

    @property
    def wants_states(self) -> bool:
        """Whether `saw` is of use to it."""

    def saw(self, stream: object, start: int, states: Tensor) -> None:
        """Tokens start, start + 1, … of a stream have been run and are there to stay.

        states: dtype[N, H], as `Trunk.forward_rows` returns them; they may be kept. A `start` that is not where the
        last call ended means that the tokens from there on are run anew.
        """

    async def draft(self, wishes: Sequence[Wish]) -> list[Drafts]:
        """Drafts for every wish, in their order, none longer than its width.

        Raises:
            ShoalError: a weight of the drafter's own is damaged. Missing knowledge is no error: it has no drafts then.

        *Cancellation:* as if it had not been called.
        """
