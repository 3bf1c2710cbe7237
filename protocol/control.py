"""What a node and its owner's programs (the terminal, the TUI) say to each other on one machine. Sans-IO.

One JSON object a line. A connection carries one request; the node answers with one reply, or, to FollowLogs, with a
LogLine for each event. These types are also what `--json` prints, and docs/schemas is made from them. Nothing here
carries a prompt, a hidden state, a key or an invite token. Fields may be added: unknown ones are ignored.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from shoal.protocol.errors import Malformed
from shoal.protocol.limits import KIB, MIB

MAX_REQUEST_BYTES = 4 * KIB
"""A request line: a verb and a number."""

MAX_REPLY_BYTES = 4 * MIB
"""A reply line: 256 holders of 58 layers each take 1 MB."""

MAX_PAUSE_S = 366 * 86_400.0
"""A longer pause is an uninstallation; without a duration a pause has no end."""

MAX_LOG_LINES = 10_000
"""Lines of the past that one request can ask for."""

Kind = TypeVar("Kind")

Count = Annotated[int, Meta(ge=0)]
Amount = Annotated[float, Meta(ge=0)]
UnixTime = Annotated[float, Meta(ge=0, description="seconds since 1970, UTC")]
Ranges = Annotated[str, Meta(description="experts as ascending ranges: 0-15,20")]


class NodeState(StrEnum):
    """What a node is doing."""

    STARTING = "starting"
    SERVING = "serving"
    PAUSED = "paused"
    DRAINING = "draining"


class PauseReason(StrEnum):
    """Why a node works for nobody at the moment."""

    USER = "user"
    SCHEDULE = "schedule"
    INPUT = "input"
    """somebody uses this machine"""
    INPUT_UNKNOWN = "input_unknown"
    """idle_only is set and nothing tells whether somebody does"""
    BATTERY = "battery"
    TEMPERATURE = "temperature"
    POWER = "power"
    MONTHLY_CAP = "monthly_cap"
    METERED = "metered"
    """the connection is paid by the byte"""
    PROGRAM = "program"
    """a program that the owner gives way to runs"""
    LOAD = "load"
    """other programs keep the processors busy"""


# ---- what the owner asks -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GetStatus:
    """Answered by NodeStatus, at once and from memory."""


@dataclass(frozen=True, slots=True)
class GetPeers:
    """Answered by Peers: clients that are connected, and holders by the directory."""


@dataclass(frozen=True, slots=True)
class GetCoverage:
    """Answered by Coverage: replicas of every expert by the directory."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Answered by NodeStatus within a second: nothing is computed for others any more. None: until Resume."""

    duration_s: Annotated[float, Meta(gt=0, le=MAX_PAUSE_S)] | None = None


@dataclass(frozen=True, slots=True)
class Resume:
    """Answered by NodeStatus. Ends a Pause; what the settings forbid (a schedule, a battery) stays forbidden."""


@dataclass(frozen=True, slots=True)
class FollowLogs:
    """Answered by LogLine after LogLine: the last `num_lines`, then, if `is_following`, what happens, until hang-up."""

    num_lines: Annotated[int, Meta(ge=0, le=MAX_LOG_LINES)] = 20
    is_following: bool = False


@dataclass(frozen=True, slots=True)
class Drain:
    """Answered by NodeStatus: the node leaves as after SIGTERM."""


ControlRequest = GetStatus | GetPeers | GetCoverage | Pause | Resume | FollowLogs | Drain


# ---- what the node answers -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LayerHolding:
    """What a peer holds of one layer."""

    layer: Count
    experts: Ranges


@dataclass(frozen=True, slots=True)
class NodeLimits:
    """What the owner allows; None: no limit."""

    ram_bytes: Count | None
    """memory for experts"""
    disk_bytes: Count | None
    threads: Count
    up_bytes_per_s: Count | None
    down_bytes_per_s: Count | None
    monthly_bytes: Count | None
    """both directions together"""
    vram_bytes: Count | None = None
    """of a CUDA device, in all"""
    cold_bytes: Count = 0
    """disk for experts that are read when somebody asks for them"""
    lan_unlimited: bool = False
    """private addresses know no limit and are not counted"""


@dataclass(frozen=True, slots=True)
class WeightTransfer:
    """Weights that come here and that peers are given; bytes are of pieces."""

    num_missing: Count = 0
    """experts that were to be held and were not here, in the latest fetch"""
    num_fetched: Count = 0
    """of these, how many have come"""
    missing_bytes: Count = 0
    fetched_bytes: Count = 0
    peer_bytes: Count = 0
    """of these, from peers"""
    fetched_bytes_per_s: Amount = 0.0
    """since the fetch began"""
    left_s: Amount | None = None
    """at that rate; None: nothing is on its way, or no rate is known"""
    pieces_given: Count = 0
    bytes_given: Count = 0
    fetches_refused: Count = 0
    num_takers: Count = 0
    """peers that take pieces now"""
    num_waiting: Count = 0
    """peers that wait for their turn"""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node at one moment. Counters are since `started_at_s`; rates are of the last ten seconds."""

    name: str
    version: str
    pid: Count
    peer: str
    state: NodeState
    pause_reason: PauseReason | None
    paused_until_s: UnixTime | None
    """None with a pause: until `resume`, or while its reason lasts"""
    started_at_s: UnixTime
    model: str
    """the checkpoint directory's name"""
    model_root: str
    weight_format: str
    kernel: str
    holding: tuple[LayerHolding, ...]
    num_experts: Count
    resident_bytes: Count
    num_clients: Count
    requests_served: Count
    requests_refused: Count
    rows_computed: Count
    """(token, expert) pairs"""
    tokens_given: Amount
    """rows as whole tokens: divided by the experts that one token uses in all layers"""
    compute_s: Amount
    queue_s: Amount
    """time to work off what is admitted"""
    bytes_up: Count
    bytes_down: Count
    up_bytes_per_s: Amount
    down_bytes_per_s: Amount
    month: str
    """2026-11, in local time"""
    month_bytes: Count
    limits: NodeLimits
    addresses: tuple[str, ...]
    lan_bytes_up: Count = 0
    """with `lan_unlimited`: what went to private addresses, not in `bytes_up`"""
    lan_bytes_down: Count = 0
    weights: WeightTransfer = WeightTransfer()
    num_cold: Count = 0
    """experts on its disk beside those, read when nobody else has them"""
    read_ms: Count = 0
    """what reading one of them takes; 0: not measured"""


class PeerRole(StrEnum):
    """What a peer is to this node."""

    SELF = "self"
    HOLDER = "holder"
    CLIENT = "client"
    ANNOUNCED = "announced"
    """no node of ours runs; it says that it is on the LAN, and nothing of it is proved"""


@dataclass(frozen=True, slots=True)
class Peer:
    """One peer. A holder's fields are the word of its record; a client's are what we counted."""

    peer: str
    role: PeerRole
    addresses: tuple[str, ...] = ()
    holding: tuple[LayerHolding, ...] = ()
    num_experts: Count = 0
    capacity_mmacs: Count = 0
    queue_s: Amount = 0.0
    expires_at_s: UnixTime | None = None
    num_connections: Count = 0
    requests_served: Count = 0
    num_cold: Count = 0
    """experts on its disk beside those, read when nobody else has them"""
    read_ms: Count = 0


@dataclass(frozen=True, slots=True)
class Peers:
    """All peers that a node knows of, holders first, by id."""

    peers: tuple[Peer, ...]


@dataclass(frozen=True, slots=True)
class LayerCoverage:
    """One layer: `replicas[e]` is the number of holders of expert e, disks not counted."""

    layer: Count
    replicas: tuple[Count, ...]
    num_rare: Count = 0
    """experts with fewer replicas than `target_replicas`"""
    coming: Ranges = ""
    """what some holder is about to hold besides what it holds"""
    anchor_only: Ranges = ""
    """what is on disks only"""


@dataclass(frozen=True, slots=True)
class RareExpert:
    """An expert with fewer replicas than `target_replicas`."""

    layer: Count
    expert: Count
    replicas: Count


@dataclass(frozen=True, slots=True)
class Coverage:
    """The whole model by the directory. `expert_bytes`: memory of one expert at this node."""

    model_root: str
    num_holders: Count
    num_experts: Count
    num_missing: Count
    """experts that nobody holds, disks not counted"""
    min_replicas: Count
    worst_layer: Count
    expert_bytes: Count
    layers: tuple[LayerCoverage, ...]
    num_anchors: Count = 0
    """peers that have experts on disk only: last resorts"""
    target_replicas: Count = 2
    """an expert with fewer is rare: the next death may be a gap"""
    num_rare: Count = 0
    num_coming: Count = 0
    num_anchor_only: Count = 0
    rarest: tuple[RareExpert, ...] = ()
    """the first few, fewest replicas first"""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One event of a node's log: a name of the catalogue and its fields."""

    at_s: UnixTime
    level: str
    event: str
    fields: dict[str, str | int | float | bool | None]


@dataclass(frozen=True, slots=True)
class Refused:
    """The request could not be done; `exit_status` is the command's."""

    message: str
    exit_status: Annotated[int, Meta(ge=1, le=255)] = 1


ControlReply = NodeStatus | Peers | Coverage | LogLine | Refused

REQUESTS: dict[str, type[ControlRequest]] = {
    "status": GetStatus, "peers": GetPeers, "coverage": GetCoverage, "pause": Pause, "resume": Resume,
    "logs": FollowLogs, "drain": Drain,
}  # fmt: skip
REPLIES: dict[str, type[ControlReply]] = {
    "status": NodeStatus, "peers": Peers, "coverage": Coverage, "log": LogLine, "refused": Refused
}  # fmt: skip
_NAMES: dict[type, str] = {cls: name for table in (REQUESTS, REPLIES) for name, cls in table.items()}


def encode_control(message: ControlRequest | ControlReply) -> bytes:
    """One line, with its end."""
    return msgspec.json.encode({"type": _NAMES[type(message)], **as_json(message)}) + b"\n"


def decode_request(line: bytes) -> ControlRequest:
    """Read one line of the owner's.

    Raises:
        Malformed: no request of ours, or a field out of its range.
    """
    kind, fields = _split(line)
    cls = REQUESTS.get(kind)
    if cls is None:
        raise Malformed(f"no request is called {kind!r}")
    return _convert(fields, cls)


def decode_reply(line: bytes) -> ControlReply:
    """Read one line of the node's.

    Raises:
        Malformed: no reply of ours, or a field out of its range.
    """
    kind, fields = _split(line)
    cls = REPLIES.get(kind)
    if cls is None:
        raise Malformed(f"no reply is called {kind!r}")
    return _convert(fields, cls)


def as_json(message: ControlRequest | ControlReply) -> dict[str, object]:
    """What `--json` prints."""
    built: dict[str, object] = msgspec.to_builtins(message)
    return built


def _split(line: bytes) -> tuple[str, dict[str, object]]:
    try:
        fields = msgspec.json.decode(line, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"not a line of the control protocol: {error}") from None
    return str(fields.pop("type", "")), fields


def _convert(fields: dict[str, object], cls: type[Kind]) -> Kind:
    try:
        return msgspec.convert(fields, cls)
    except msgspec.ValidationError as error:
        raise Malformed(f"{cls.__name__}: {error}") from None
