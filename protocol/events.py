"""What happened, as typed fields and never as prose: logs, screens, benchmarks and simulations read the same events.

No event carries a prompt, a hidden state or a key; peers appear by their public id.
"""

from collections.abc import Callable
from dataclasses import dataclass

from shoal.protocol.ids import ExpertId, LayerId, PeerId


@dataclass(frozen=True, slots=True)
class HolderJoined:
    """A holder is connected, has passed its challenge and may be used."""

    peer: PeerId
    num_experts: int


@dataclass(frozen=True, slots=True)
class HolderLost:
    """A holder is not used any more; `reason` is an error's class name."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class DispatchSent:
    """A request is on its way to a holder."""

    peer: PeerId
    layer: LayerId
    num_experts: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class ReplyReceived:
    """A holder answered. `exchange_s`: send to receive; `queue_s` and `compute_s`: the holder's word."""

    peer: PeerId
    layer: LayerId
    exchange_s: float
    queue_s: float
    compute_s: float


@dataclass(frozen=True, slots=True)
class FailedOver:
    """A holder failed a request and replicas answered it instead; `call_s`: the whole call, the failure included."""

    peer: PeerId
    layer: LayerId
    experts: tuple[ExpertId, ...]
    reason: str
    call_s: float


Event = HolderJoined | HolderLost | DispatchSent | ReplyReceived | FailedOver
Observer = Callable[[Event], None]
"""Called in the event loop; must return at once."""


def ignore(event: Event) -> None:
    """The observer of those who do not want to know."""
