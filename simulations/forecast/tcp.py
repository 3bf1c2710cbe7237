"""What TCP adds to bytes that cross a link: headers, the rounds of a window that has yet to grow, the repair of a loss.

Arithmetic of Linux's defaults with reno or cubic; BBR, which paces small exchanges to 1.6 round trips, is not in it.
"""

from dataclasses import dataclass, field

from shoal.protocol.ids import PeerId

SEGMENT_BYTES, HEADER_BYTES = 1448, 52
"""Of a packet of 1,500 bytes: IPv4 (20), TCP (20) and its timestamps (12) are not payload."""

INITIAL_WINDOW_BYTES = 10 * SEGMENT_BYTES
"""RFC 6928; of a new connection, and of one that was idle (tcp_slow_start_after_idle)."""

MIN_REPAIR_S = 0.2
"""A lone packet has no later ones whose acknowledgements would betray its loss: the sender's timer does, at the round
trip and no less than this beyond it (Linux's TCP_RTO_MIN; RFC 6298 has a second)."""


PACKET_BYTES = SEGMENT_BYTES + HEADER_BYTES


def wire_bytes(size_bytes: int) -> int:
    """A frame with its packets' headers."""
    return size_bytes + -(-size_bytes // SEGMENT_BYTES) * HEADER_BYTES


def num_packets(on_wire: int) -> int:
    """Of a frame with its headers."""
    return -(-on_wire // PACKET_BYTES)


def last_packet_bytes(on_wire: int) -> int:
    """What of a frame passes a second link after it has passed the first: links hand packets on whole."""
    return min(on_wire, PACKET_BYTES)


def repair_s(rtt_s: float, num_losses: int) -> float:
    """Until a packet that was lost so many times in a row has arrived, beyond its usual time."""
    return (2.0**num_losses - 1) * (rtt_s + MIN_REPAIR_S)


@dataclass(slots=True)
class Windows:
    """How much each connection may send at once, each way; they double with every round (RFC 5681 §3.1)."""

    is_grown: bool = False
    """They have met larger frames before: no frame waits for a window."""
    _sizes: dict[tuple[PeerId, bool], int] = field(default_factory=dict)

    def has_room(self, peer: PeerId, is_out: bool, size_bytes: int) -> bool:
        """Whether a frame may go at once."""
        return self.is_grown or size_bytes <= self._sizes.get((peer, is_out), INITIAL_WINDOW_BYTES)

    def wait_s(self, peer: PeerId, is_out: bool, size_bytes: int, rtt_s: float, bytes_per_s: float) -> float:
        """How long a frame waits for acknowledgements before its last byte may go; the window is larger afterwards."""
        if self.is_grown:
            return 0.0
        window, left, waited_s = self._sizes.get((peer, is_out), INITIAL_WINDOW_BYTES), size_bytes, 0.0
        while left > window:
            waited_s += max(0.0, rtt_s - window / bytes_per_s)
            left -= window
            window *= 2
        self._sizes[peer, is_out] = window
        return waited_s
