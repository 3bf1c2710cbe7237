"""Which lane a frame travels on (PROTOCOL.md §10)."""

from shoal.protocol import limits
from shoal.protocol.messages import Lane

ACT_MAX_BYTES = 64 * limits.KIB
"""Bodies of DISPATCH and PARTIAL up to here go on `act`: four tokens of DeepSeek-V3 in bf16, 0.5 ms at 1 Gbit/s, which
is what a decode frame may have to wait for another. Larger ones go on `bulk`, where nobody waits for a token."""


LANE_OF_PIECES = Lane.BULK
"""Of FETCH and CHUNK, however small: no token waits for a weight, so no weight gets in a token's way."""


def lane_for(body_bytes: int) -> Lane:
    """The lane of a request or reply with a body of this size."""
    return Lane.ACT if body_bytes <= ACT_MAX_BYTES else Lane.BULK
