"""The order in which waiting requests reach the kernel: fair by peers, not by arrival.

Start-time fair queueing (Goyal, Vin, Cheng 1996): each item starts, in virtual time, when its peer's last one ends or
now, whichever is later, and the smallest start goes first. So a peer with a thousand requests delays another peer's one
by one of his, while peers that take turns are served in turn. Pure; knows no clock and no requests.
"""

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Generic, TypeVar

from shoal.protocol.ids import PeerId

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Items of peers, each with a cost. Items are told apart by identity.

    Limits: none of its own; what is put in was admitted.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Item]] = []
        self._places: dict[int, Item] = {}
        """Items that wait, by `id`, in the order of arrival; the heap also has some that were taken out of it."""
        self._ends: dict[PeerId, float] = {}
        """In virtual time, where each peer's last item ends; for peers with items waiting or ahead of the others."""
        self._now = 0.0
        self._num_pushed = 0

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Item]:
        """What waits, in the order of arrival."""
        return iter(self._places.values())

    def push(self, peer: PeerId, cost: float, item: Item) -> None:
        """Add an item of `peer`."""
        start = max(self._now, self._ends.get(peer, 0.0))
        self._ends[peer] = start + cost
        self._num_pushed += 1
        self._places[id(item)] = item
        heappush(self._heap, (start, self._num_pushed, item))

    def pop(self) -> Item:
        """Take out whose turn it is.

        Raises:
            IndexError: nothing waits.
        """
        while True:
            start, _, item = heappop(self._heap)
            if self._places.pop(id(item), None) is not None:
                self._now = start
                self._forget()
                return item

    def discard(self, item: Item) -> None:
        """Take an item out, if it waits."""
        if self._places.pop(id(item), None) is not None:
            self._forget()

    def _forget(self) -> None:
        """An empty queue remembers nobody; a long one forgets peers whose turn is not ahead of the others'."""
        if not self._places:
            self._heap.clear()
            self._ends.clear()
            self._now = 0.0
        elif len(self._heap) > 2 * len(self._places) + 16:
            self._heap = sorted(entry for entry in self._heap if id(entry[2]) in self._places)
        if len(self._ends) > 2 * len(self._places) + 16:
            self._ends = {peer: end for peer, end in self._ends.items() if end > self._now}
