"""The seam of the data path: requests and replies to one authenticated peer (DESIGN §4).

Three back ends: `direct` (asyncio TLS 1.3), `libp2p` (p2pd raw streams), `memory` (tests, simulation). All run the
same multiplexer; a back end only opens authenticated byte streams. A channel never retries: the caller, who knows the
replicas, does.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from shoal.protocol.dtypes import DType
from shoal.protocol.errors import NotHeld
from shoal.protocol.frames import Buffer
from shoal.protocol.ids import PeerId
from shoal.protocol.membership import IsRevoked
from shoal.protocol.messages import Chunk, Dispatch, Fetch, Partial


@dataclass(frozen=True, slots=True)
class Request:
    """A DISPATCH with its body, as a server's handler sees it.

    `request_hash` is what the reply must carry. `deadline` is the loop time after which nobody waits any more.
    """

    peer: PeerId
    message: Dispatch
    body: Buffer
    request_hash: bytes
    deadline: float


@dataclass(frozen=True, slots=True)
class Reply:
    """A PARTIAL with its body. The multiplexer has checked the request's hash; tensors are still bytes."""

    message: Partial
    body: Buffer


Handler = Callable[[Request], Awaitable[Reply]]
"""Serves one request. Cancelled when the client cancels or is gone. A ShoalError is answered by its wire code;
anything else by INTERNAL."""


@dataclass(frozen=True, slots=True)
class PieceRequest:
    """A FETCH, as a server's handler sees it; the fields as in `Request`."""

    peer: PeerId
    message: Fetch
    request_hash: bytes
    deadline: float


@dataclass(frozen=True, slots=True)
class PieceReply:
    """A CHUNK with its bytes, which nobody has verified."""

    message: Chunk
    body: Buffer


PieceHandler = Callable[[PieceRequest], Awaitable[PieceReply]]
"""Serves one FETCH; as `Handler`."""


async def no_pieces(request: PieceRequest) -> PieceReply:
    """The handler of a server that gives no weights to anybody."""
    raise NotHeld("no weights are to be had here")


@dataclass(slots=True)
class Traffic:
    """Bytes of frames on one channel, both directions."""

    bytes_sent: int = 0
    bytes_received: int = 0


@dataclass(frozen=True, slots=True)
class ClientCount:
    """One session of a client at a listener: its open lanes and the requests that were answered with a result."""

    peer: PeerId
    num_lanes: int
    num_served: int


class Channel(Protocol):
    """Requests to one peer, multiplexed over lanes."""

    @property
    def peer(self) -> PeerId:
        """Whom the channel is authenticated to."""

    @property
    def is_closed(self) -> bool:
        """True once no request can succeed any more; open another channel then."""

    @property
    def is_draining(self) -> bool:
        """True once the peer said DRAIN: requests in flight finish, new ones belong elsewhere."""

    @property
    def dtypes(self) -> frozenset[DType]:
        """Formats beyond the exact ones in which the peer takes hidden states and gives partial sums."""

    @property
    def traffic(self) -> Traffic:
        """Counts of bytes since the channel was opened."""

    async def request(self, message: Dispatch, body: Sequence[Buffer]) -> Reply:
        """Send a DISPATCH (`body`: the pieces of its body in order) and wait for its PARTIAL, of the format asked for.

        Raises:
            DeadlineExceeded: no answer within `message.deadline_ms`; the peer has been told to stop.
            ChannelClosed: the connection ended first.
            Busy, Draining, NotHeld, WrongModel, RemoteError: the peer's refusal as an error.

        Cancellation: the request may have been executed, is not any more, or never was; CANCEL is sent.
        Limits: waits for the peer's credits, within the same deadline.
        """

    def begin(self, message: Dispatch, body: Sequence[Buffer]) -> "asyncio.Future[Reply] | None":
        """Send a DISPATCH now and return where its answer will be; None if that has to wait: then use `request`.

        The future fails as `request` does, and cancelling it tells the peer.

        Raises:
            ChannelClosed, Draining: nothing was sent.
        """

    async def ping(self, timeout_s: float) -> float:
        """Round trip on the control lane in seconds."""

    async def aclose(self) -> None:
        """Close all lanes; requests in flight end with ChannelClosed. Idempotent."""


class PieceChannel(Channel, Protocol):
    """A channel that weights come through, too."""

    async def fetch(self, message: Fetch) -> PieceReply:
        """Send a FETCH and wait for its CHUNK, which is in the range that was asked for, and perhaps shorter.

        Raises, Cancellation, Limits: as `request`; its credits are the bytes asked for.
        """


class PieceConnector(Protocol):
    """Opens channels that weights come through; a `Connector` too."""

    async def connect(self, peer: PeerId, addresses: Sequence[str], timeout_s: float) -> PieceChannel:
        """As `Connector.connect`."""

    async def aclose(self) -> None:
        """Close every channel that is still open."""


class Connector(Protocol):
    """Opens channels of one kind."""

    async def connect(self, peer: PeerId, addresses: Sequence[str], timeout_s: float) -> Channel:
        """Open a channel to `peer` at the first of `addresses` that answers and proves that key.

        Raises:
            ConnectFailed: no address answered in time. AuthenticationFailed: somebody else lives there.
        """

    async def aclose(self) -> None:
        """Close every channel that is still open."""


class Listener(Protocol):
    """Serves channels of one kind."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where peers reach us, in the notation of holder records."""

    async def drain(self, grace_s: float) -> None:
        """Tell clients to go elsewhere, accept nothing new, give requests in flight `grace_s` to finish."""

    async def aclose(self) -> None:
        """Stop listening and close all connections; running handlers are cancelled."""


class GatedListener(Listener, Protocol):
    """A listener whose owner may pause it."""

    def clients(self) -> list[ClientCount]:
        """Who is connected, session by session."""

    def suspend(self, grace_s: float) -> None:
        """Tell clients to go elsewhere and let none in until `resume`; requests in flight go on."""

    def resume(self) -> None:
        """Let clients in again."""

    def expel(self, is_revoked: IsRevoked) -> int:
        """Cut the sessions of members whose token was revoked, and say how many those were."""
