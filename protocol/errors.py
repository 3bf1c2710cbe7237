"""Everything that can go wrong, as one tree. The branch says whose fault it is.

    ShoalError
    ├── LocalError            we, or our user, asked for something impossible      (exit 2)
    │   ├── InvalidRequest
    │   ├── ContextLengthExceeded
    │   ├── NoTokenAllowed
    │   ├── AddressInUse
    │   ├── ModelNotFound
    │   ├── AccessRefused         a source of weights wants another token
    │   ├── NodeAlreadyRunning
    │   ├── NodeNotRunning        (exit 3)
    │   ├── InsecureTelemetry
    │   └── ServiceManagerFailed  (exit 1)
    ├── RemoteError           a peer broke the protocol                            (exit 5)
    │   ├── Malformed             undecodable, out of range, not canonical
    │   ├── TooLarge              over a limit of limits.py
    │   ├── NonFinite             NaN or infinity in a tensor
    │   ├── UnsupportedVersion
    │   ├── AuthenticationFailed  not the key it claims
    │   ├── RecordRejected        a directory record that is forged, stale or oversize
    │   └── PeerFailed            the peer said INTERNAL: its own fault
    ├── NetworkError          nobody's fault: links and machines die               (exit 1)
    │   ├── ConnectFailed
    │   ├── ChannelClosed
    │   ├── DeadlineExceeded
    │   ├── SourceFailed          a source of weights gave nothing, or half of it
    │   └── Cancelled             the peer cancelled the request
    ├── CapacityError         the swarm lacks something                            (exit 4, 7)
    │   ├── Busy                  over a peer's limits; try another replica
    │   ├── Draining              the peer is leaving
    │   ├── NotHeld               the peer does not hold the expert (any more)
    │   ├── DiskFull              no room in the store of weights
    │   ├── SourceBusy            a source of weights wants us to come back later
    │   └── CoverageGap           nobody holds an expert                           (exit 4)
    └── IntegrityError        weights are not what the manifest says               (exit 6)
        ├── CheckpointError       names the file and the tensor
        ├── SourceLied            a source of weights gave other bytes than the manifest's
        └── WrongModel            another manifest root, format or rounding

`retry_elsewhere` says whether the same request may succeed at another replica. Errors that travel carry a `WireCode`
and no text (R11): prose of ours must not become an oracle for a peer.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import ClassVar

from shoal.protocol.ids import ExpertId, LayerId


class WireCode(IntEnum):
    """The error numbers of REFUSAL messages (PROTOCOL.md §8)."""

    MALFORMED = 1
    VERSION = 2
    UNAUTHORIZED = 3
    WRONG_MODEL = 4
    NOT_HELD = 5
    BUSY = 6
    DEADLINE = 7
    TOO_LARGE = 8
    NONFINITE = 9
    DRAINING = 10
    CANCELLED = 11
    INTERNAL = 12
    RATE = 13


class ShoalError(Exception):
    """Root of the tree: every error a user of shoal needs to catch."""

    exit_status: ClassVar[int] = 1
    retry_elsewhere: ClassVar[bool] = False
    wire_code: ClassVar[WireCode] = WireCode.INTERNAL


class LocalError(ShoalError):
    """We, or our user, asked for something impossible."""

    exit_status = 2


class InvalidRequest(LocalError):
    """An argument is out of range or contradicts another."""


class ContextLengthExceeded(LocalError):
    """The prompt, or prompt and answer together, do not fit the model's context."""

    def __init__(self, num_tokens: int, limit: int) -> None:
        super().__init__(f"{num_tokens} tokens do not fit the model's context of {limit}; shorten the prompt")
        self.num_tokens = num_tokens
        self.limit = limit


class NoTokenAllowed(LocalError):
    """An answer's grammar has come to a dead end: it excludes every token of the model."""


class AddressInUse(LocalError):
    """Another program listens on the address."""

    def __init__(self, address: str) -> None:
        super().__init__(f"{address} is in use by another program; choose another port or 0 for any free one")
        self.address = address


class ModelNotFound(LocalError):
    """The directory is not there or holds no checkpoint."""


class AccessRefused(LocalError):
    """A source of weights does not let us in: no token, an expired one, or terms that were not accepted."""

    def __init__(self, source: str, status: int) -> None:
        super().__init__(f"{source} refuses (HTTP {status}): a token is missing, expired or not enough; see HF_TOKEN")
        self.source = source
        self.status = status


class NodeAlreadyRunning(LocalError):
    """Another process is the node of that name on this machine."""

    def __init__(self, name: str) -> None:
        super().__init__(f"a node called {name} runs already; try: shoal status, or shoal node --name another")
        self.name = name


class NodeNotRunning(LocalError):
    """There is no node to talk to."""

    exit_status = 3

    def __init__(self, name: str) -> None:
        of_name = "" if name == "node" else f" --name {name}"
        super().__init__(f"no node called {name} runs on this machine; try: shoal node{of_name}")
        self.name = name


class InsecureTelemetry(LocalError):
    """Figures of a node would cross a network in the clear."""

    def __init__(self, host: str) -> None:
        super().__init__(f"telemetry to {host} without TLS is refused; set telemetry.mqtt.tls = true, or use 127.0.0.1")
        self.host = host


class ServiceManagerFailed(LocalError):
    """systemd or launchd did not do what it was told."""

    exit_status = 1

    def __init__(self, command: str, reason: str) -> None:
        super().__init__(f"`{command}` failed: {reason}; the service is written, start it by that command")


class RemoteError(ShoalError):
    """A peer broke the protocol; it is scored for it."""

    exit_status = 5
    retry_elsewhere = True
    wire_code = WireCode.MALFORMED


class Malformed(RemoteError):
    """Bytes that are no message: undecodable, not canonical, out of range, of the wrong length."""


class TooLarge(RemoteError):
    """A length over its limit, refused before anything was allocated."""

    wire_code = WireCode.TOO_LARGE


class NonFinite(RemoteError):
    """NaN or infinity in a tensor."""

    wire_code = WireCode.NONFINITE


class UnsupportedVersion(RemoteError):
    """The peer speaks another version of the protocol."""

    wire_code = WireCode.VERSION


class AuthenticationFailed(RemoteError):
    """The peer could not prove the key that its peer id stands for."""

    wire_code = WireCode.UNAUTHORIZED


class RecordRejected(RemoteError):
    """A directory record is forged, stale, oversize or not bound to its owner."""


class PeerFailed(RemoteError):
    """The peer reported an internal failure of its own."""

    wire_code = WireCode.INTERNAL


class NetworkError(ShoalError):
    """A link or a machine died."""

    retry_elsewhere = True


class ConnectFailed(NetworkError):
    """No address of the peer answered."""


class ChannelClosed(NetworkError):
    """The connection ended with requests in flight."""


class DeadlineExceeded(NetworkError):
    """No answer in time."""

    wire_code = WireCode.DEADLINE


class Cancelled(NetworkError):
    """The request was cancelled at the other end."""

    wire_code = WireCode.CANCELLED


class SourceFailed(NetworkError):
    """A source of weights could not be reached, stalled, or broke off."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source


class CapacityError(ShoalError):
    """The swarm, or one peer, lacks what it takes."""

    exit_status = 7
    retry_elsewhere = True


class Busy(CapacityError):
    """Over a limit; nothing was queued."""

    wire_code = WireCode.BUSY

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(f"{reason}; retry after {retry_after_s:.2f} s")
        self.retry_after_s = retry_after_s


class Draining(CapacityError):
    """The peer finishes its work and leaves."""

    wire_code = WireCode.DRAINING


class NotHeld(CapacityError):
    """The peer does not hold an expert that its record promised."""

    wire_code = WireCode.NOT_HELD


class DiskFull(CapacityError):
    """No room for a piece of a model: the disk, or the store's cap, is full."""

    retry_elsewhere = False


class SourceBusy(CapacityError):
    """A source of weights asks us to come back later."""

    def __init__(self, source: str, retry_after_s: float) -> None:
        super().__init__(f"{source} is busy; retry after {retry_after_s:.0f} s")
        self.source = source
        self.retry_after_s = retry_after_s


class CoverageGap(CapacityError):
    """No reachable peer holds some experts of a layer. Never masked: the answer would be wrong."""

    exit_status = 4
    retry_elsewhere = False

    def __init__(self, layer: LayerId, experts: Sequence[ExpertId], retry_after_s: float) -> None:
        shown = ", ".join(str(expert) for expert in experts[:8]) + (", …" if len(experts) > 8 else "")
        super().__init__(
            f"nobody reachable holds expert{'s' if len(experts) > 1 else ''} {shown} of layer {layer};"
            f" retry after {retry_after_s:.0f} s"
        )
        self.layer = layer
        self.experts = tuple(experts)
        self.retry_after_s = retry_after_s


class IntegrityError(ShoalError):
    """Weights are not what the manifest says they are."""

    exit_status = 6
    wire_code = WireCode.WRONG_MODEL


class CheckpointError(IntegrityError):
    """A checkpoint file is damaged or not of the published layout."""

    def __init__(self, file: str, tensor: str | None, reason: str) -> None:
        super().__init__(f"{file}{f': tensor {tensor}' if tensor else ''}: {reason}")
        self.file = file
        self.tensor = tensor
        self.reason = reason


class SourceLied(IntegrityError):
    """A source of weights gave bytes that are not the manifest's; it is not asked again."""

    retry_elsewhere = True

    def __init__(self, source: str, what: str) -> None:
        super().__init__(f"{source} gave bytes for {what} that are not the manifest's; it is not asked again")
        self.source = source


class WrongModel(IntegrityError):
    """A peer serves another model: manifest root, weight format or rounding version differ (R10)."""

    retry_elsewhere = True
