"""Errors to REFUSAL codes and back (PROTOCOL.md §8). Codes travel, text does not (R11)."""

from shoal.protocol import limits
from shoal.protocol.errors import (
    AuthenticationFailed,
    Busy,
    Cancelled,
    DeadlineExceeded,
    Draining,
    Malformed,
    NonFinite,
    NotHeld,
    PeerFailed,
    ShoalError,
    TooLarge,
    UnsupportedVersion,
    WireCode,
    WrongModel,
)
from shoal.protocol.ids import PeerId
from shoal.protocol.messages import Refusal

ERROR_TYPES: dict[WireCode, type[ShoalError]] = {
    WireCode.MALFORMED: Malformed,
    WireCode.VERSION: UnsupportedVersion,
    WireCode.UNAUTHORIZED: AuthenticationFailed,
    WireCode.WRONG_MODEL: WrongModel,
    WireCode.NOT_HELD: NotHeld,
    WireCode.BUSY: Busy,
    WireCode.DEADLINE: DeadlineExceeded,
    WireCode.TOO_LARGE: TooLarge,
    WireCode.NONFINITE: NonFinite,
    WireCode.DRAINING: Draining,
    WireCode.CANCELLED: Cancelled,
    WireCode.INTERNAL: PeerFailed,
    WireCode.RATE: Busy,
}
"""What a client raises for each code. LocalError and CoverageGap have no code: they left as INTERNAL."""


def refusal_of(error: ShoalError) -> Refusal:
    """The REFUSAL that tells a peer of `error`."""
    retry_after_ms = round(error.retry_after_s * 1000) if isinstance(error, Busy) else 0
    return Refusal(error.wire_code, min(max(retry_after_ms, 0), limits.MAX_DURATION_MS))


def error_of(refusal: Refusal, peer: PeerId) -> ShoalError:
    """The error that a REFUSAL of `peer` stands for."""
    code = WireCode(refusal.code)
    reason = f"{peer} refused with {code.name}"
    if ERROR_TYPES[code] is Busy:
        return Busy(reason, refusal.retry_after_ms / 1000)
    return ERROR_TYPES[code](reason)
