"""Whose turn it is when a node has more to do than it can: a token bucket per peer, of compute and of wire (R7).

Buckets count in seconds of the whole node, so that a decode step and a prefill of another client compare. They fill at
1/n per second while n peers use the node, hold a burst, and may be in debt for as much: a large request is never
impossible. They only say who is over his share; `admission.py` asks them when somebody else is waiting, so that a
client alone is never slowed. Pure: the clock is injected. Knows no requests and no tensors.
"""

from collections.abc import Callable
from dataclasses import dataclass

from shoal.protocol.ids import PeerId

PRUNE_SHARE = 0.25
"""Full buckets are forgotten this often, in bursts: often enough that who has left soon counts no more."""


@dataclass(slots=True)
class _Bucket:
    """Seconds of the node that a peer may still take, as of `at_s`."""

    compute_s: float
    wire_s: float
    at_s: float


class Shares:
    """The buckets of one node.

    Limits: as many buckets as peers that used the node lately; each is forgotten once it is full again.
    """

    def __init__(self, burst_s: float, clock: Callable[[], float]) -> None:
        """burst_s: seconds of the node that a peer may take at once, > 0. clock: seconds, monotonic."""
        self._burst_s = burst_s
        self._clock = clock
        self._buckets: dict[PeerId, _Bucket] = {}
        self._pruned_at_s = clock()

    @property
    def num_peers(self) -> int:
        """Peers that used the node lately."""
        return len(self._buckets)

    def wait_s(self, peer: PeerId) -> float:
        """Seconds until `peer` is within its share again; 0 if it is."""
        self._prune()
        bucket = self._buckets.get(peer)
        if bucket is None:
            return 0.0
        self._fill(bucket)
        return max(0.0, -min(bucket.compute_s, bucket.wire_s)) * len(self._buckets)

    def spend(self, peer: PeerId, compute_s: float, wire_s: float) -> None:
        """Take what a request of `peer` costs; a debt grows to one burst and no further."""
        bucket = self._buckets.get(peer)
        if bucket is None:
            bucket = self._buckets[peer] = _Bucket(self._burst_s, self._burst_s, self._clock())
        self._fill(bucket)
        bucket.compute_s = max(-self._burst_s, bucket.compute_s - compute_s)
        bucket.wire_s = max(-self._burst_s, bucket.wire_s - wire_s)

    def _fill(self, bucket: _Bucket) -> None:
        now_s = self._clock()
        earned_s = (now_s - bucket.at_s) / len(self._buckets)
        bucket.compute_s = min(self._burst_s, bucket.compute_s + earned_s)
        bucket.wire_s = min(self._burst_s, bucket.wire_s + earned_s)
        bucket.at_s = now_s

    def _prune(self) -> None:
        """Forget who has not used the node for so long that its bucket is full."""
        if self._clock() - self._pruned_at_s < PRUNE_SHARE * self._burst_s:
            return
        self._pruned_at_s = self._clock()
        for bucket in self._buckets.values():
            self._fill(bucket)
        full_s = self._burst_s
        self._buckets = {
            peer: each for peer, each in self._buckets.items() if min(each.compute_s, each.wire_s) < full_s
        }  # fmt: skip
