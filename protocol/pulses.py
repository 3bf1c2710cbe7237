"""Signs of life that cost 16 bytes and no signature: a record carries the end of a hash chain, its owner walks back
along it (PROTOCOL.md §7).

Pulse k hashes to pulse k - 1, and the record is signed with pulse 0. Only the owner can tell pulse k; it says "alive
at `issued` + k x `PULSE_STEP_S`". So keepers and readers believe a renewal without trusting whoever passed it on.
Sans-IO: time is an argument.
"""

from blake3 import blake3

from shoal.protocol import limits
from shoal.protocol.identity import Identity
from shoal.protocol.version import PULSE_CONTEXT

PULSE_BYTES = 16
"""Half a hash: 2^128 guesses for a pulse that is of use for two hours."""

MS = 1000


class PulseChain:
    """All pulses of one record of ours. They follow from our key, so that nothing need be kept or drawn."""

    def __init__(self, identity: Identity, model_root: bytes, issued_ms: int) -> None:
        seed = identity.sign(PULSE_CONTEXT + model_root + issued_ms.to_bytes(8, "big"))
        pulses = [blake3(seed).digest(PULSE_BYTES)]
        for _ in range(limits.MAX_PULSE):
            pulses.append(earlier(pulses[-1]))
        self._pulses = pulses[::-1]

    def __getitem__(self, index: int) -> bytes:
        return self._pulses[index]


def earlier(pulse: bytes, steps: int = 1) -> bytes:
    """The pulse so many steps before this one: 0.5 µs a step."""
    for _ in range(steps):
        pulse = blake3(PULSE_CONTEXT + pulse).digest(PULSE_BYTES)
    return pulse


def pulse_due(issued_ms: int, now_s: float) -> int:
    """Which pulse may be told at Unix time `now_s`; beyond `limits.MAX_PULSE` the record must be issued anew."""
    return max(0, int((now_s * MS - issued_ms) // (limits.PULSE_STEP_S * MS)))


def expires_at_s(issued_ms: int, index: int) -> float:
    """Until when a record is good whose pulse `index` is known: Unix time, to the millisecond."""
    return (issued_ms + (index * limits.PULSE_STEP_S + limits.RECORD_TTL_S) * MS) / MS
