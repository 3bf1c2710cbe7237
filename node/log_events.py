"""Everything a node logs: a closed catalogue of typed events, each with a level and a sentence for people.

No event has a field for a prompt, a hidden state, a key or an invite; peers appear by their public id. What libraries
say appears as `LibrarySaid`.
"""

import logging
import re
from dataclasses import dataclass
from typing import ClassVar, get_args

import msgspec

from shoal.protocol.control import PauseReason

LOGGER = "shoal.node.events"
"""The logger that all of them go through."""


class LogEvent:
    """Base of the catalogue: `str()` is the sentence."""

    __slots__ = ()
    LEVEL: ClassVar[int] = logging.INFO

    def __str__(self) -> str:
        return name_of(type(self)).replace("_", " ")


@dataclass(frozen=True, slots=True)
class NodeStarting(LogEvent):
    """The model is open; experts are about to be loaded."""

    version: str
    model_root: str

    def __str__(self) -> str:
        return f"shoal {self.version} starts with model {self.model_root[:16]}…"


@dataclass(frozen=True, slots=True)
class NodeReady(LogEvent):
    """Serving."""

    peer: str
    num_experts: int
    resident_bytes: int

    def __str__(self) -> str:
        return f"serving {self.num_experts} experts ({self.resident_bytes / 1e6:.0f} MB) as {self.peer}"


@dataclass(frozen=True, slots=True)
class NodePaused(LogEvent):
    """Computing for nobody. `until_s`: Unix time, if it is known."""

    reason: PauseReason
    until_s: float | None

    def __str__(self) -> str:
        return f"paused: {self.reason.replace('_', ' ')}"


@dataclass(frozen=True, slots=True)
class NodeResumed(LogEvent):
    """Serving again."""

    def __str__(self) -> str:
        return "serving again"


@dataclass(frozen=True, slots=True)
class NodeDraining(LogEvent):
    """Told to stop; finishes what is in flight."""


@dataclass(frozen=True, slots=True)
class NodeStopped(LogEvent):
    """The end. `error`: a class name, or None."""

    error: str | None

    def __str__(self) -> str:
        return f"stopped by {self.error}" if self.error else "stopped"


@dataclass(frozen=True, slots=True)
class RequestServed(LogEvent):
    """One request's figures, never its content."""

    LEVEL = logging.DEBUG
    peer: str
    layer: int
    num_experts: int
    num_tokens: int
    compute_ms: float

    def __str__(self) -> str:
        return f"layer {self.layer}: {self.num_tokens} tokens, {self.num_experts} experts in {self.compute_ms:.2f} ms"


@dataclass(frozen=True, slots=True)
class RequestRefused(LogEvent):
    """A request was refused; `error` is a class name."""

    LEVEL = logging.DEBUG
    peer: str
    layer: int
    error: str

    def __str__(self) -> str:
        return f"layer {self.layer}: refused {self.peer[-8:]} with {self.error}"


@dataclass(frozen=True, slots=True)
class RecordsNotRenewed(LogEvent):
    """The directory did not take our records; tried again at the next turn."""

    LEVEL = logging.WARNING
    error: str


@dataclass(frozen=True, slots=True)
class RecordsNotWithdrawn(LogEvent):
    """The directory did not take our goodbye; records will expire."""

    error: str


@dataclass(frozen=True, slots=True)
class TcpIsSlow(LogEvent):
    """Settings of this kernel make exchanges across the network take more than one round trip. Said once, at the start.
    `command`: what cures all of it."""

    LEVEL = logging.WARNING
    is_paced: bool
    is_restarting: bool
    command: str

    def __str__(self) -> str:
        paced = "its congestion control makes a small exchange through libp2p take 1.6 round trips"
        restarting = "its window shrinks in idle moments, and 28 KiB then take 3 round trips"
        found = [words for words, is_so in ((paced, self.is_paced), (restarting, self.is_restarting)) if is_so]
        return f"TCP: {'; '.join(found)}; try: {self.command}"


@dataclass(frozen=True, slots=True)
class TransferNotCounted(LogEvent):
    """The month's count can not be written: after a crash it would be too low."""

    LEVEL = logging.WARNING
    error: str


@dataclass(frozen=True, slots=True)
class PauseNotKept(LogEvent):
    """The pause, or its end, can not be written: after a restart the node does as before."""

    LEVEL = logging.WARNING
    error: str


@dataclass(frozen=True, slots=True)
class RevocationsTaken(LogEvent):
    """A later list of the founder's is known: `number` tokens are refused."""

    number: int

    def __str__(self) -> str:
        return f"the founder has revoked {self.number} tokens in all"


@dataclass(frozen=True, slots=True)
class TokensExpelled(LogEvent):
    """Connections of revoked tokens were cut."""

    num_sessions: int

    def __str__(self) -> str:
        return f"{self.num_sessions} connections of revoked tokens were cut"


@dataclass(frozen=True, slots=True)
class RevocationsNotFetched(LogEvent):
    """The directory, or the disk, did not take or give the list; tried again within half a minute."""

    LEVEL = logging.WARNING
    error: str


@dataclass(frozen=True, slots=True)
class LogNotWritten(LogEvent):
    """The log file takes no more, as on a full disk; the node goes on. Said once, until it works again."""

    LEVEL = logging.WARNING
    error: str
    reason: str

    def __str__(self) -> str:
        return f"the log can not be written: {self.reason}"


@dataclass(frozen=True, slots=True)
class TelemetryConnected(LogEvent):
    """The broker takes our figures."""


@dataclass(frozen=True, slots=True)
class TelemetryLost(LogEvent):
    """The broker is away; the node goes on, and telemetry tries again after about `retry_s`."""

    LEVEL = logging.WARNING
    error: str
    retry_s: float

    def __str__(self) -> str:
        return f"telemetry: {self.error}; tried again in about {self.retry_s:.0f} s"


@dataclass(frozen=True, slots=True)
class PiecesFetched(LogEvent):
    """What was to be held and was not in the store has come, and is verified."""

    num_pieces: int
    size_bytes: int
    peer_bytes: int
    """Of these, from peers."""

    def __str__(self) -> str:
        peer_mb = self.peer_bytes / 1e6
        return (
            f"fetched {self.num_pieces} experts ({self.size_bytes / 1e6:.0f} MB, {peer_mb:.0f} MB of them from peers)"
        )


@dataclass(frozen=True, slots=True)
class TrunkKept(LogEvent):
    """The whole trunk is here, and clients are told that they may take it."""

    num_pieces: int
    size_bytes: int

    def __str__(self) -> str:
        return f"keeps the trunk ({self.num_pieces} tensors, {self.size_bytes / 1e6:.0f} MB) and gives it to clients"


@dataclass(frozen=True, slots=True)
class PieceDamaged(LogEvent):
    """The disk gave other bytes than it was given; the piece was removed."""

    LEVEL: ClassVar[int] = logging.WARNING

    piece: str

    def __str__(self) -> str:
        return f"{self.piece} was damaged on disk and is removed; the node goes on with what it has in memory"


@dataclass(frozen=True, slots=True)
class PieceNotGiven(LogEvent):
    """A peer asked for a piece that the disk did not give us."""

    LEVEL: ClassVar[int] = logging.WARNING

    error: str


@dataclass(frozen=True, slots=True)
class SourcesNotOpened(LogEvent):
    """Where the model came from does not answer; peers do, and the sources are tried again."""

    LEVEL: ClassVar[int] = logging.WARNING

    error: str


@dataclass(frozen=True, slots=True)
class FillFailed(LogEvent):
    """Experts that are to be held could not be brought here; tried again after a minute."""

    LEVEL: ClassVar[int] = logging.WARNING

    error: str


@dataclass(frozen=True, slots=True)
class PeerLied(LogEvent):
    """A peer gave other bytes than the manifest's for a piece; it is not asked for weights again in this run."""

    LEVEL: ClassVar[int] = logging.WARNING

    peer: str
    piece: str

    def __str__(self) -> str:
        return f"{self.peer} gave wrong bytes for {self.piece} and is not asked for weights again"


@dataclass(frozen=True, slots=True)
class PackedDamaged(LogEvent):
    """An expert that was kept as the kernels run it is not whole, or can not be read; it is packed anew."""

    LEVEL: ClassVar[int] = logging.WARNING

    piece: str
    error: str

    def __str__(self) -> str:
        return f"{self.piece} was damaged in the cache of packed experts and is packed again ({self.error})"


@dataclass(frozen=True, slots=True)
class PackedNotKept(LogEvent):
    """The cache of packed experts has no room, or no place; the next start packs again what is not in it."""

    reason: str

    def __str__(self) -> str:
        return f"packed experts are not kept for the next start: {self.reason}"


@dataclass(frozen=True, slots=True)
class SwarmNotSeen(LogEvent):
    """The directory did not answer when a count of holders was wanted; the node goes on without."""

    LEVEL: ClassVar[int] = logging.WARNING

    error: str

    def __str__(self) -> str:
        return f"what the swarm has most of is not known now ({self.error}); pieces go by their last use"


@dataclass(frozen=True, slots=True)
class LibrarySaid(LogEvent):
    """A warning or error of another logger."""

    logger: str
    message: str
    error: str | None

    def __str__(self) -> str:
        return f"{self.logger}: {self.message}"


@dataclass(frozen=True, slots=True)
class ExpertsChosen(LogEvent):
    """What to hold was left to the node, and it has found its place. Counts are of experts, but the last two."""

    num_experts: int
    num_missing: int
    num_rare: int
    num_whole_groups: int
    num_holders: int

    def __str__(self) -> str:
        return (
            f"chose {self.num_experts} experts in {self.num_whole_groups} whole groups: {self.num_missing} that nobody"
            f" held, {self.num_rare} with too few holders, beside {self.num_holders} holders"
        )


@dataclass(frozen=True, slots=True)
class ExpertsTakenOver(LogEvent):
    """Experts had too few holders for too long, and are held here now. `num_dropped`: what was given up for them."""

    num_taken: int
    num_dropped: int

    def __str__(self) -> str:
        return f"took over {self.num_taken} experts that had too few holders, gave up {self.num_dropped}"


@dataclass(frozen=True, slots=True)
class TakeOverFailed(LogEvent):
    """The swarm could not be looked at, or a weight not be loaded; tried again later."""

    LEVEL = logging.WARNING
    error: str


AnyLogEvent = (
    NodeStarting | NodeReady | NodePaused | NodeResumed | NodeDraining | NodeStopped | RequestServed | RequestRefused
    | RecordsNotRenewed | RecordsNotWithdrawn | TransferNotCounted | PauseNotKept | RevocationsTaken | TokensExpelled
    | RevocationsNotFetched | TelemetryConnected | TelemetryLost | PiecesFetched | TrunkKept | PieceDamaged
    | PieceNotGiven
    | PeerLied | SourcesNotOpened | FillFailed | PackedDamaged | PackedNotKept | SwarmNotSeen | LogNotWritten
    | TcpIsSlow | LibrarySaid | ExpertsChosen | ExpertsTakenOver | TakeOverFailed
)  # fmt: skip

CATALOGUE: tuple[type[AnyLogEvent], ...] = get_args(AnyLogEvent)


def name_of(cls: type[LogEvent]) -> str:
    """`NodePaused` to `node_paused`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


def log_event(event: AnyLogEvent) -> None:
    """Log an event of the catalogue."""
    logger = logging.getLogger(LOGGER)
    if logger.isEnabledFor(event.LEVEL):
        logger.log(event.LEVEL, "%s", event, extra={"event": event})


def fields_of(event: AnyLogEvent) -> dict[str, str | int | float | bool | None]:
    """The fields as plain values."""
    built: dict[str, str | int | float | bool | None] = msgspec.to_builtins(event)
    return built
