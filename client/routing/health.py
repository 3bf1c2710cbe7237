"""What we know of one holder from its answers: how fast it is, and whether it may be used now. Pure: time and chance
are arguments.

Round trips after RFC 6298; on top of them the holder's own speed, because one decode row and a prefill of 256 tokens
differ a hundredfold in work. The circuit breaker is the time of `doubted_until`: past it the holder is half open, and
the next request is its probe (`asked`).
"""

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum

from shoal.client.routing.link_rate import LinkRate
from shoal.protocol.errors import Busy, CapacityError, PeerFailed, RemoteError, ShoalError

INITIAL_RTT_S = 0.25
"""Before the first answer: a link across a continent. RFC 6298 says 1 s; a peer that is up has just shaken hands."""

MIN_RTO_S = 0.05
"""Below this a retransmission timeout would fire on a scheduler's hiccup; a request sent twice by mistake costs only
its bytes."""

MIN_DEADLINE_S = 0.5
"""A holder is told to give up only then: two busy cores stall a process for 100-300 ms (measured)."""

MAX_DEADLINE_S = 30.0
"""Half of what the wire allows: by then another replica has answered."""

INITIAL_MACS_PER_S = 1e9
"""Before the first answer: an old laptop with the reference kernel."""

MAX_READ_S = 5.0
"""The longest that a holder's word on its disk is believed: 44 MB at 9 MB/s, a bad USB stick."""

WORK_MARGIN = 4.0
"""A holder may be this much slower than its average before we go elsewhere."""

NUM_RECENT = 64
"""Round trips that a quantile is taken of: at 58 exchanges a token about the last second."""

MIN_RECENT = 16
"""Fewer say nothing about a 95th percentile; the timeout is used instead."""

HEDGE_QUANTILE = 0.95
"""Dean and Barroso, The Tail at Scale (2013): a second request after the 95th percentile costs 5 % more traffic."""

MAX_FAILURES = 3
"""Consecutive failures after which the breaker opens (DESIGN §9)."""

FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 60.0
"""Doubling from the first to the last while failures go on."""

STALL_BACKOFF = 4.0
"""The first backoff after a stall, in timeouts: one call in a hundred stalls for ten times its time on honest machines
(security-and-reliability §4), and a second is too long a punishment for that."""

MISBEHAVIOUR_BACKOFF_S = 600.0
"""A peer that sent garbage is left alone for ten minutes (security-and-reliability §7, R7)."""


class Standing(IntEnum):
    """How willingly a holder is asked; lower is better."""

    USABLE = 0
    DOUBTED = 1
    """Failed or stalled lately; asked if nobody better holds an expert."""
    BUSY = 2
    """Said BUSY; asked when the time that it named has passed."""
    BANNED = 3
    """Sent garbage."""


@dataclass(slots=True)
class Health:
    """One holder's record with us. Times are loop times in seconds."""

    srtt_s: float = INITIAL_RTT_S
    rttvar_s: float = INITIAL_RTT_S / 2
    macs_per_s: float = INITIAL_MACS_PER_S
    read_s: float = 0.0
    """What reading one expert from its disk takes: its word, then what its answers told."""
    said_read_s: float = 0.0
    """Its word."""
    failures: int = 0
    is_silent: bool = False
    """It was overtaken and has not answered a ping since."""
    times_overtaken: int = 0
    """In a row."""
    macs_in_flight: int = 0
    num_in_flight: int = 0
    num_answered: int = 0
    doubted_until: float = 0.0
    busy_until: float = 0.0
    banned_until: float = 0.0
    link: LinkRate = field(default_factory=LinkRate)
    """Measured only where it chooses the format of activations."""
    _recent_s: deque[float] = field(default_factory=lambda: deque(maxlen=NUM_RECENT), repr=False)
    _ordered_s: list[float] = field(default_factory=list, repr=False)
    """The same in order: every request asks for a quantile."""

    @property
    def has_sample(self) -> bool:
        """Whether `srtt_s` was measured; before, it is a guess."""
        return bool(self._recent_s)

    def standing(self, now: float) -> Standing:
        """Whether it is asked now."""
        if now < self.banned_until:
            return Standing.BANNED
        if now < self.busy_until:
            return Standing.BUSY
        return Standing.DOUBTED if self.is_silent or now < self.doubted_until else Standing.USABLE

    def may_answer(self, now: float) -> bool:
        """Whether there is hope for an answer without waiting for the breaker: it has not failed or stalled lately. One
        that was merely overtaken, or is busy, answers."""
        standing = self.standing(now)
        return standing is not Standing.BANNED and not (standing is Standing.DOUBTED and self.failures)

    def cost_s(self) -> float:
        """Expected seconds of an exchange, for the choice among replicas: its round trip, and what we have given it to
        do already; failures count as slowness."""
        return (self.srtt_s + self.macs_in_flight / self.macs_per_s) * (1 + self.failures)

    def read_was_said(self, read_s: float) -> None:
        """Take a holder's word on its disk; the same word again changes nothing of what its answers told."""
        read_s = min(read_s, MAX_READ_S)
        if read_s != self.said_read_s:
            self.read_s = self.said_read_s = read_s

    def work(self, macs: int, num_cold: int) -> int:
        """A request as multiply-accumulates at this holder's speed, with the reading of so many experts."""
        return macs + int(num_cold * max(self.read_s, self.said_read_s) * self.macs_per_s)

    def hedge_after_s(self, macs: int) -> float:
        """Past the 95th percentile of recent round trips by as much as that is past the median, and the work.

        At the percentile itself one healthy request in twenty is hedged, which is the whole budget: a holder that fell
        silent then found it spent (measured: 50 ms lost instead of 12).
        """
        if len(self._recent_s) < MIN_RECENT:
            return self.rto_s(macs)
        ordered = self._ordered_s
        late_s, median_s = ordered[int(HEDGE_QUANTILE * (len(ordered) - 1))], ordered[len(ordered) // 2]
        return 2 * late_s - median_s + WORK_MARGIN * macs / self.macs_per_s

    def rto_s(self, macs: int) -> float:
        """After how long we take it for stalled: SRTT + 4·RTTVAR (RFC 6298 §2) + work."""
        return max(self.srtt_s + 4 * self.rttvar_s + WORK_MARGIN * macs / self.macs_per_s, MIN_RTO_S)

    def deadline_s(self, macs: int) -> float:
        """After how long nobody waits any more, which the holder is told; doubled by each failure in a row.

        The doubling (RFC 6298 §5.5) lets the only holder of an expert be slower than anyone expected. What is under way
        to it already is answered first, and each of those may take as long.
        """
        alone_s = max(self.rto_s(macs), MIN_DEADLINE_S) * 2.0 ** min(self.failures, 16)
        return min(alone_s * (1 + self.num_in_flight), MAX_DEADLINE_S)

    def asked(self, macs: int, now: float) -> None:
        """A request of this much work is on its way. To a holder that failed last it is the probe: one at a time."""
        self.macs_in_flight += macs
        self.num_in_flight += 1
        if self.failures:
            self.doubted_until = max(self.doubted_until, now + self.rto_s(macs))

    def ended(self, macs: int) -> None:
        """That request has ended, however it did."""
        self.macs_in_flight -= macs
        self.num_in_flight -= 1

    def answered(self, exchange_s: float, compute_s: float, macs: int, num_cold: int = 0) -> None:
        """Learn from a good answer; `compute_s` is the holder's word and is bounded by what we saw. An answer for which
        experts had to be read tells of the disk, and nothing of the kernel."""
        compute_s = min(compute_s, exchange_s)
        self.saw_rtt(exchange_s - compute_s)
        if num_cold:
            read_s = max(0.0, compute_s - macs / self.macs_per_s) / num_cold
            self.read_s += (min(read_s, MAX_READ_S) - self.read_s) / 8
        elif compute_s > 0:
            self.macs_per_s += (macs / compute_s - self.macs_per_s) / 8
        self.num_answered += 1
        self.failures = self.times_overtaken = 0
        self.doubted_until = 0.0

    def saw_rtt(self, rtt_s: float) -> None:
        """Learn a round trip (RFC 6298 §2)."""
        if self._recent_s:
            self.rttvar_s += (abs(self.srtt_s - rtt_s) - self.rttvar_s) / 4
            self.srtt_s += (rtt_s - self.srtt_s) / 8
        else:
            self.srtt_s, self.rttvar_s = rtt_s, rtt_s / 2
        self._remember(rtt_s)

    def _remember(self, rtt_s: float) -> None:
        if len(self._recent_s) == NUM_RECENT:
            del self._ordered_s[bisect_left(self._ordered_s, self._recent_s[0])]
        self._recent_s.append(rtt_s)
        insort(self._ordered_s, rtt_s)

    def was_overtaken(self, waited_s: float, macs: int, now: float, chance: float) -> None:
        """Another holder answered first what this one was asked; past its timeout that is a stall.

        Before it, the holder is left alone for one timeout, or each layer of the token would spend a hedge on it; again
        and again without an answer of its own, for twice as long each time. The time waited is less than its answer
        would have taken, but the best we know of it.
        """
        if waited_s >= self.rto_s(macs):
            self._doubt(STALL_BACKOFF * self.rto_s(macs), now, chance)
        else:
            self._remember(waited_s)
            self.doubted_until = now + self.rto_s(macs) * 2.0 ** min(self.times_overtaken, 16)
        self.times_overtaken += 1

    def failed(self, error: ShoalError, now: float, chance: float) -> None:
        """Learn from a failure: what it was decides for how long the holder is left alone. chance: in 0..1."""
        if isinstance(error, Busy):
            self.busy_until = now + error.retry_after_s * (1 + chance / 2)  # not everyone at the same moment
        elif isinstance(error, RemoteError) and not isinstance(error, PeerFailed):
            self.failures += 1
            self.banned_until = now + MISBEHAVIOUR_BACKOFF_S
        elif isinstance(error, CapacityError) or self.failures + 1 >= MAX_FAILURES:
            self._doubt(FIRST_BACKOFF_S, now, chance)
        else:
            self.failures += 1

    def _doubt(self, first_s: float, now: float, chance: float) -> None:
        """Leave it alone for a while: doubling, with jitter so that its clients do not come back together."""
        self.failures += 1
        backoff_s = min(first_s * 2.0 ** min(self.failures - 1, 16), MAX_BACKOFF_S)
        self.doubted_until = now + backoff_s * (0.5 + chance / 2)
