"""Two drafters as one: whoever the first has nothing for is asked of the second. Knows the seam only."""

from collections.abc import Sequence

from torch import Tensor

from shoal.client.speculation.drafter import Drafter, Drafts, Wish


class FirstOf:
    """Implements `Drafter`: a text that repeats itself is a better guess than a layer's, where there is one."""

    def __init__(self, first: Drafter, second: Drafter) -> None:
        self._first = first
        self._second = second

    @property
    def wants_states(self) -> bool:
        """See `Drafter`."""
        return self._first.wants_states or self._second.wants_states

    def saw(self, stream: object, start: int, states: Tensor) -> None:
        """See `Drafter`."""
        self._first.saw(stream, start, states)
        self._second.saw(stream, start, states)

    async def draft(self, wishes: Sequence[Wish]) -> list[Drafts]:
        """See `Drafter`."""
        drafts = await self._first.draft(wishes)
        places = [place for place, found in enumerate(drafts) if not found]
        if places:
            found_by_second = await self._second.draft([wishes[place] for place in places])
            for place, found in zip(places, found_by_second, strict=True):
                drafts[place] = found
        return drafts
