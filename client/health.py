"""What we know of one holder from its answers: how fast it is, whether it may be used now. Pure: time is an argument.

Round trips after RFC 6298; on top of them the holder's own speed, because one decode row and a prefill of 256 tokens
differ a hundredfold in work.
"""

from dataclasses import dataclass, field

from shoal.protocol.errors import Busy, CapacityError, PeerFailed, RemoteError, ShoalError

INITIAL_RTT_S = 0.25
"""Before the first answer: a link across a continent. RFC 6298 says 1 s; a peer that is up has just shaken hands."""

MIN_DEADLINE_S = 0.5
"""Below this a deadline would fire on a scheduler's hiccup: two busy cores stall a process for 100-300 ms
(measured)."""

MAX_DEADLINE_S = 30.0
"""Half of what the wire allows: by then another replica has answered."""

INITIAL_MACS_PER_S = 1e9
"""Before the first answer: an old laptop with the reference kernel."""

WORK_MARGIN = 4.0
"""A holder may be this much slower than its average before we go elsewhere."""

MAX_FAILURES = 3
"""Consecutive failures after which the breaker opens (DESIGN §9)."""

FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 60.0
"""Doubling from the first to the last while failures go on."""

MISBEHAVIOUR_BACKOFF_S = 600.0
"""A peer that sent garbage is left alone for ten minutes (security-and-reliability §7, R7)."""


@dataclass(slots=True)
class Health:
    """One holder's record with us. Times are loop times in seconds."""

    srtt_s: float = INITIAL_RTT_S
    rttvar_s: float = INITIAL_RTT_S / 2
    macs_per_s: float = INITIAL_MACS_PER_S
    failures: int = 0
    paused_until: float = 0.0
    """Better not asked before, but it may be if nobody else is left."""
    banned_until: float = 0.0
    """Not asked before at all: it sent garbage."""
    _has_sample: bool = field(default=False, repr=False)

    @property
    def has_sample(self) -> bool:
        """Whether `srtt_s` was measured; before, it is a guess."""
        return self._has_sample

    def is_usable(self, now: float) -> bool:
        return now >= max(self.paused_until, self.banned_until)

    def is_banned(self, now: float) -> bool:
        return now < self.banned_until

    def cost_s(self) -> float:
        """Expected seconds of an exchange, for the choice among replicas; failures count as slowness."""
        return self.srtt_s * (1 + self.failures)

    def deadline_s(self, macs: int) -> float:
        """How long to wait for a request of this much work: SRTT + 4·RTTVAR + work, doubled by each failure in a row.

        The doubling (RFC 6298 §5.5) lets the only holder of an expert be slower than anyone expected.
        """
        expected = self.srtt_s + 4 * self.rttvar_s + WORK_MARGIN * macs / self.macs_per_s
        return min(max(expected, MIN_DEADLINE_S) * 2.0**self.failures, MAX_DEADLINE_S)

    def answered(self, exchange_s: float, compute_s: float, macs: int) -> None:
        """Learn from a good answer; `compute_s` is the holder's word and is bounded by what we saw."""
        compute_s = min(compute_s, exchange_s)
        self.saw_rtt(exchange_s - compute_s)
        if compute_s > 0:
            self.macs_per_s += (macs / compute_s - self.macs_per_s) / 8
        self.failures = 0

    def saw_rtt(self, rtt_s: float) -> None:
        """Learn a round trip (RFC 6298 §2)."""
        if self._has_sample:
            self.rttvar_s += (abs(self.srtt_s - rtt_s) - self.rttvar_s) / 4
            self.srtt_s += (rtt_s - self.srtt_s) / 8
        else:
            self.srtt_s, self.rttvar_s, self._has_sample = rtt_s, rtt_s / 2, True

    def failed(self, error: ShoalError, now: float) -> None:
        """Learn from a failure: what it was decides for how long the holder is left alone."""
        if isinstance(error, Busy):
            self.paused_until = now + error.retry_after_s
            return
        self.failures += 1
        if isinstance(error, RemoteError) and not isinstance(error, PeerFailed):
            self.banned_until = now + MISBEHAVIOUR_BACKOFF_S
        elif isinstance(error, CapacityError) or self.failures >= MAX_FAILURES:
            self.paused_until = now + min(FIRST_BACKOFF_S * 2 ** (self.failures - 1), MAX_BACKOFF_S)
