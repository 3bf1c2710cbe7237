"""Who may take a listener's resources: connections and requests in flight, in all and per peer (PROTOCOL.md §9, R7).

Counts only. Over a limit the answer is `Busy` at once, never a queue.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from shoal.protocol import limits
from shoal.protocol.errors import Busy
from shoal.protocol.ids import PeerId

RETRY_AFTER_REQUESTS_S = 0.05
"""A peer over its requests in flight has one finish in about a batch's time."""

RETRY_AFTER_CONNECTIONS_S = 5.0
"""Connections last; another replica is the better answer."""


class Admission:
    """The counts of one listener, shared by all its lanes."""

    def __init__(self) -> None:
        self._num_half_open = 0
        self._num_lanes = 0
        self._lanes_of: Counter[PeerId] = Counter()
        self._requests_of: Counter[PeerId] = Counter()
        self._bytes_of: Counter[PeerId] = Counter()

    @contextmanager
    def half_open(self) -> Iterator[None]:
        """Hold a place for a connection whose peer is not known yet.

        Raises:
            Busy: too many; close without an answer.
        """
        if self._num_half_open >= limits.MAX_HALF_OPEN:
            raise Busy(f"{self._num_half_open} connections half open", RETRY_AFTER_CONNECTIONS_S)
        self._num_half_open += 1
        try:
            yield
        finally:
            self._num_half_open -= 1

    @contextmanager
    def lane(self, peer: PeerId) -> Iterator[None]:
        """Hold a place for one lane of an authenticated peer.

        Raises:
            Busy: too many in all, or of this peer.
        """
        if self._num_lanes >= limits.MAX_CONNECTIONS or self._lanes_of[peer] >= limits.MAX_CONNECTIONS_PER_PEER:
            raise Busy(f"{self._lanes_of[peer]} lanes of {peer}, {self._num_lanes} in all", RETRY_AFTER_CONNECTIONS_S)
        self._num_lanes += 1
        self._lanes_of[peer] += 1
        try:
            yield
        finally:
            self._num_lanes -= 1
            _decrease(self._lanes_of, peer, 1)

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


def _decrease(counts: Counter[PeerId], peer: PeerId, amount: int) -> None:
    """Decrease and forget zeros: peers come and go, their names must not pile up."""
    counts[peer] -= amount
    if counts[peer] <= 0:
        del counts[peer]
