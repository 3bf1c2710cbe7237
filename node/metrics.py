"""Counters of one node: plain numbers for the log, the status line and the tests. No peer ids, no payloads."""

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class NodeMetrics:
    """What this node has done since it started."""

    requests_served: int = 0
    requests_refused: int = 0
    rows_computed: int = 0
    """(token, expert) pairs."""
    compute_s: float = 0.0
    kernel_calls: int = 0
    requests_joined: int = 0
    """Requests that shared another one's kernel call."""
    requests_expired: int = 0
    """Requests that were dropped because their deadline passed while they waited for the kernel."""
    pieces_given: int = 0
    """Last chunks of pieces that were given to peers."""
    bytes_given: int = 0
    """Of weights, to peers; less than what went up, which has answers too."""
    fetches_refused: int = 0

    def snapshot(self) -> dict[str, float]:
        """All counters by name."""
        return asdict(self)
