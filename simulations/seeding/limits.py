"""What no policy can beat: how long filling takes if every line is busy from beginning to end.

Three bounds, each of bytes over bytes a second; a fill lasts at least as long as the largest. They say nothing of who
has what: three slow machines that alone hold a piece would take longer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.simulations.forecast.peers import Link


@dataclass(frozen=True, slots=True)
class FillLimits:
    """Seconds."""

    hub_s: float
    """One copy out of the hub; 0 if the hub has no limit of its own."""
    uplinks_s: float
    """What peers gave, through the sum of all uplinks."""
    downlinks_s: float
    """What the machine with the largest share for its line is to hold, through its own downlink."""

    @property
    def least_s(self) -> float:
        """The one that binds."""
        return max(self.hub_s, self.uplinks_s, self.downlinks_s)


def fill_limits(
    shares_bytes: Sequence[int], newcomers: Sequence[Link], givers: Sequence[Link], peer_bytes: int, hub_s: float = 0.0
) -> FillLimits:
    """Bounds of one fill. shares_bytes: what each newcomer is to hold; givers: everybody who may give; peer_bytes: what
    did not come from the hub."""
    own = [share / link.down for share, link in zip(shares_bytes, newcomers, strict=True)]
    return FillLimits(hub_s, peer_bytes / sum(link.up for link in givers), max(own))
