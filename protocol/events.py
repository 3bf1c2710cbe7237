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
    experts: tuple[ExpertId, ...] = ()
    """which, ascending"""


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


@dataclass(frozen=True, slots=True)
class Hedged:
    """A holder was later than usual and replicas were asked as well; `has_won`: they answered first."""

    peer: PeerId
    layer: LayerId
    experts: tuple[ExpertId, ...]
    has_won: bool
    call_s: float


@dataclass(frozen=True, slots=True)
class ExpertsTimed:
    """A layer's routed experts have answered; the six durations of its call, which add up to all of it.

    It stands between the `LayerTimed` of the layer before and that of its own layer, after its `ReplyReceived`.
    """

    layer: LayerId
    num_tokens: int
    num_holders: int
    """Holders whose answers were used."""
    slowest: PeerId
    """Whose answer came last."""
    wire_s: float
    """Of the first answer: there and back, serializing included, less the holder's own two durations."""
    queue_s: float
    compute_s: float
    """Of the first answer, as its holder tells."""
    straggling_s: float
    """From the first answer to the last: waiting for the slowest."""
    failed_s: float
    """Before the first answer's request: calls that failed and had to be made again."""
    local_s: float
    """The rest: grouping, choosing holders, cutting rows, summing."""


@dataclass(frozen=True, slots=True)
class LayerTimed:
    """One layer of one forward pass of the trunk, or of a wave of it: those overlap, each has its own times."""

    pass_id: int
    """Counts the passes of one client."""
    layer: LayerId
    num_tokens: int
    """Rows of the wave, of all its streams together."""
    attention_s: float
    """Norms, projections and attention; in a dense layer all of it."""
    route_s: float
    """Norm and router; 0 in a dense layer."""
    experts_s: float
    """From dispatch to the sum, with the shared expert meanwhile; 0 in a dense layer."""


@dataclass(frozen=True, slots=True)
class PassTaken:
    """A forward pass is over and its tokens are chosen; its `LayerTimed` came before."""

    pass_id: int
    num_decoding: int
    """Streams that decoded one token."""
    num_prefilled: int
    """Prompt tokens in the pass."""
    num_running: int
    """Streams that hold a place, these included."""
    num_waiting: int
    """Streams that wait for one."""
    head_s: float
    """Final norm and head."""
    sampling_s: float
    """Choosing the tokens."""
    total_s: float
    """All of the pass, from choosing its streams to handing out tokens."""
    num_drafted: int = 0
    """Drafts that it verified."""
    num_accepted: int = 0
    """Those of them that were right: tokens without a pass of their own."""
    draft_s: float = 0.0
    """Making them; part of `total_s`."""
    num_void: int = 0
    """Those of `num_drafted` that were under way in passes behind it, and were thrown away by what it brought."""


@dataclass(frozen=True, slots=True)
class PrefillDone:
    """A stream's first token is chosen."""

    num_prompt_tokens: int
    queue_s: float
    """From the request to a place among the running."""
    prefill_s: float
    """From there to the first token."""


Event = (
    HolderJoined
    | HolderLost
    | DispatchSent
    | ReplyReceived
    | FailedOver
    | Hedged
    | ExpertsTimed
    | LayerTimed
    | PassTaken
    | PrefillDone
)
Observer = Callable[[Event], None]
"""Called in the event loop; must return at once."""


def ignore(event: Event) -> None:
    """The observer of those who do not want to know."""
