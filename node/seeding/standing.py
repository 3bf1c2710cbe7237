"""What we think of a peer as a source: how fast it is, whether to leave it in peace for a while, or for good.

Pure. Who gives a wrong byte is not asked again; who is busy is asked when it said; who fails, later and later.
"""

from dataclasses import dataclass, field

from shoal.protocol.errors import Busy, IntegrityError, NotHeld, RemoteError, ShoalError

REST_S = 600.0
"""For a peer that broke the protocol."""

FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 60.0
"""After a failure; doubles with each that follows."""

LACKS_S = 30.0
"""A peer that does not have what its record said is asked for it again when the record was renewed."""

SMOOTHING = 0.5
"""Weight of the last piece in a peer's rate."""

FOR_EVER = float("inf")


@dataclass(slots=True)
class Standing:
    """One peer. Times by the loop's clock."""

    paused_until_s: float = 0.0
    rate_bytes_per_s: float | None = None
    """None: not measured."""
    num_taking: int = 0
    """Pieces that are being taken from it."""
    num_pieces: int = 0
    is_doubted: bool = False
    """It gave a part of a piece that turned out wrong, and others gave the rest: from then on it gives whole ones."""
    failures: int = 0
    lacks_until_s: dict[bytes, float] = field(default_factory=dict)

    @property
    def is_dropped(self) -> bool:
        """It lied."""
        return self.paused_until_s == FOR_EVER

    def may_be_asked(self, digest: bytes, now_s: float) -> bool:
        """Whether it is worth a question now."""
        return self.paused_until_s <= now_s and self.lacks_until_s.get(digest, 0.0) <= now_s

    def gave(self, size_bytes: int, took_s: float) -> None:
        """So many bytes in so long."""
        rate = size_bytes / max(took_s, 1e-6)
        known = self.rate_bytes_per_s
        self.rate_bytes_per_s = rate if known is None else known + SMOOTHING * (rate - known)

    def succeeded(self) -> None:
        """A whole piece, and right."""
        self.failures = 0
        self.num_pieces += 1

    def failed(self, error: ShoalError, digest: bytes, now_s: float, draw: float) -> None:
        """It did not give a piece. draw: 0 to 1, so that not all who were sent away come back together."""
        match error:
            case Busy():
                self.paused_until_s = now_s + max(error.retry_after_s, 0.05) * (1.0 + 0.1 * draw)
            case NotHeld():
                self.lacks_until_s[digest] = now_s + LACKS_S
            case IntegrityError():
                self.paused_until_s = FOR_EVER
            case RemoteError():
                self.paused_until_s = now_s + REST_S
            case _:
                self.failures += 1
                pause_s = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (self.failures - 1))
                self.paused_until_s = now_s + pause_s * (0.5 + draw)
