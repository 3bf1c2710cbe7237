"""Who may take a listener's resources: connections and requests in flight, in all and per peer (PROTOCOL.md §9, R7).

Counts only. Over a limit the answer is `Busy` at once, never a queue.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from shoal.protocol import limits
from shoal.protocol.errors import Busy
from shoal.protocol.ids import PeerId
from shoal.protocol.net.origins import HalfOpen, HalfOpenTable, Origin

Name = TypeVar("Name")

RETRY_AFTER_REQUESTS_S = 0.05
"""A peer over its requests in flight has one finish in about a batch's time."""

RETRY_AFTER_CONNECTIONS_S = 5.0
"""Connections last; another replica is the better answer."""


class Admission:
    """The counts of one listener, shared by all its lanes."""

    def __init__(self) -> None:
        self._half_open = HalfOpenTable()
        self._num_lanes = 0
        self._num_unfinished_bytes = 0
        self._lanes_from: Counter[Origin] = Counter()
        self._lanes_of: Counter[PeerId] = Counter()
        self._requests_of: Counter[PeerId] = Counter()
        self._bytes_of: Counter[PeerId] = Counter()

    @contextmanager
    def half_open(self, origin: Origin | None, cut: Callable[[], None]) -> Iterator[HalfOpen]:
        """Hold a place for a connection whose peer is not known yet. `cut`: ends it, should a newcomer need the place.

        Raises:
            Busy: too many of this origin; close without an answer.
        """
        place = HalfOpen(origin, cut)
        self._half_open.enter(place)
        try:
            yield place
        finally:
            self._half_open.leave(place)

    @property
    def is_full(self) -> bool:
        """Whether no lane has a place any more."""
        return self._num_lanes >= limits.MAX_CONNECTIONS

    @contextmanager
    def lane(self, peer: PeerId, origin: Origin | None) -> Iterator[None]:
        """Hold a place for one lane of an authenticated peer.

        Raises:
            Busy: too many in all, of this peer, or of this origin.
        """
        is_crowd = origin is not None and self._lanes_from[origin] >= limits.MAX_CONNECTIONS_PER_ORIGIN
        if self.is_full or is_crowd or self._lanes_of[peer] >= limits.MAX_CONNECTIONS_PER_PEER:
            raise Busy(f"{self._lanes_of[peer]} lanes of {peer}, {self._num_lanes} in all", RETRY_AFTER_CONNECTIONS_S)
        self._num_lanes += 1
        self._lanes_of[peer] += 1
        if origin is not None:
            self._lanes_from[origin] += 1
        try:
            yield
        finally:
            self._num_lanes -= 1
            _decrease(self._lanes_of, peer, 1)
            if origin is not None:
                _decrease(self._lanes_from, origin, 1)

    def hold_unfinished(self, size_bytes: int) -> None:
        """So many bytes of unfinished frames more, or less, are held.

        Raises:
            Busy: too many in all; what was asked for is counted, give it back.
        """
        self._num_unfinished_bytes += size_bytes
        if size_bytes > 0 and self._num_unfinished_bytes > limits.MAX_UNFINISHED_BYTES:
            raise Busy(f"{self._num_unfinished_bytes} bytes of unfinished frames", RETRY_AFTER_CONNECTIONS_S)

    def begin_request(self, peer: PeerId, size_bytes: int) -> None:
        """Count a request of `peer` as in flight until `end_request`.

        Raises:
            Busy: too many requests or bytes of this peer already.
        """
        num_requests, num_bytes = self._requests_of[peer], self._bytes_of[peer]
        if num_requests >= limits.MAX_INFLIGHT_REQUESTS or num_bytes + size_bytes > limits.MAX_INFLIGHT_BYTES:
            raise Busy(f"{num_requests} requests, {num_bytes} bytes of {peer} in flight", RETRY_AFTER_REQUESTS_S)
        self._requests_of[peer] += 1
        self._bytes_of[peer] += size_bytes

    def end_request(self, peer: PeerId, size_bytes: int) -> None:
        """The request is over, whatever came of it."""
        _decrease(self._requests_of, peer, 1)
        _decrease(self._bytes_of, peer, size_bytes)


def _decrease(counts: Counter[Name], name: Name, amount: int) -> None:
    """Decrease and forget zeros: peers come and go, their names must not pile up."""
    counts[name] -= amount
    if counts[name] <= 0:
        del counts[name]
