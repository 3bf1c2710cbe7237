"""Where connections come from, and how many of one origin a listener bears (PROTOCOL.md §9, R7).

An origin is an IPv4 address or an IPv6 /64, which one customer has whole. Identities cost nothing and addresses cost
something, so what a stranger may cost before he has proved a key is bounded by address. Pure: the clock is injected.
"""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network

from shoal.protocol import limits
from shoal.protocol.errors import Busy

Origin = str
"""An IPv4 address or an IPv6 /64 in text."""

IPV6_CUSTOMER_BITS = 64
"""The smallest network that providers give to a customer (RFC 6177)."""


def origin_of(peername: object) -> Origin | None:
    """The origin of a socket's `peername`; None if it has none (memory, p2pd's local socket)."""
    if not isinstance(peername, tuple) or not peername:
        return None
    try:
        address = ip_address(str(peername[0]).partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ip_network((address, IPV6_CUSTOMER_BITS), strict=False))
    return str(address)


@dataclass(eq=False, slots=True)
class HalfOpen:
    """A connection whose peer is not known yet. `cut` ends it."""

    origin: Origin | None
    cut: Callable[[], None]
    is_cut: bool = False


class HalfOpenTable:
    """The connections in a handshake.

    Limits: `MAX_HALF_OPEN_PER_ORIGIN`, beyond which newcomers of that origin are refused; `MAX_HALF_OPEN` in all,
    beyond which the oldest of the origin that has most is cut: who shakes hands takes two round trips, who holds
    places does not, and a flood pays for itself.
    """

    def __init__(self) -> None:
        self._open: dict[HalfOpen, None] = {}  # in the order of coming

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, newcomer: HalfOpen) -> None:
        """Take a place until `leave`; may cut another's.

        Raises:
            Busy: its origin has too many.
        """
        num_own = sum(each.origin == newcomer.origin for each in self._open)
        if newcomer.origin is not None and num_own >= limits.MAX_HALF_OPEN_PER_ORIGIN:
            raise Busy(f"{num_own} connections of one origin are half open", limits.HANDSHAKE_TIMEOUT_S)
        if len(self._open) >= limits.MAX_HALF_OPEN:
            victim = self._oldest_of_the_largest()
            self.leave(victim)
            victim.is_cut = True
            victim.cut()
        self._open[newcomer] = None

    def leave(self, each: HalfOpen) -> None:
        """Give the place back. Idempotent."""
        self._open.pop(each, None)

    def _oldest_of_the_largest(self) -> HalfOpen:
        oldest: dict[Origin | None, HalfOpen] = {}
        counts: dict[Origin | None, int] = {}
        for each in self._open:
            oldest.setdefault(each.origin, each)
            counts[each.origin] = counts.get(each.origin, 0) + 1
        return oldest[max(counts, key=lambda origin: counts[origin])]


class HandshakeRates:
    """Token buckets of TLS handshakes: each costs a signature, about a millisecond, before its client is known.

    Limits: as many buckets as origins that came within the time in which one fills.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """clock: seconds, monotonic."""
        self._clock = clock
        self._all = _Bucket(limits.HANDSHAKE_BURST, clock())
        self._of: dict[Origin, _Bucket] = {}
        self._swept_at_s = clock()

    def take(self, origin: Origin | None) -> None:
        """Count one handshake.

        Raises:
            Busy: too many of this origin, or in all; close without an answer.
        """
        now_s = self._clock()
        self._sweep(now_s)
        self._all.fill(now_s, limits.HANDSHAKES_PER_S, limits.HANDSHAKE_BURST)
        own = None
        if origin is not None:
            own = self._of.setdefault(origin, _Bucket(limits.HANDSHAKE_BURST_PER_ORIGIN, now_s))
            own.fill(now_s, limits.HANDSHAKES_PER_S_PER_ORIGIN, limits.HANDSHAKE_BURST_PER_ORIGIN)
        if self._all.tokens < 1 or (own is not None and own.tokens < 1):
            raise Busy("too many handshakes", 1.0)
        self._all.tokens -= 1
        if own is not None:
            own.tokens -= 1

    def _sweep(self, now_s: float) -> None:
        """Forget origins whose buckets are full again."""
        fill_s = limits.HANDSHAKE_BURST_PER_ORIGIN / limits.HANDSHAKES_PER_S_PER_ORIGIN
        if now_s - self._swept_at_s >= fill_s:
            self._swept_at_s = now_s
            self._of = {origin: each for origin, each in self._of.items() if now_s - each.at_s < fill_s}


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float

    def fill(self, now_s: float, per_s: float, burst: float) -> None:
        self.tokens = min(burst, self.tokens + (now_s - self.at_s) * per_s)
        self.at_s = now_s
