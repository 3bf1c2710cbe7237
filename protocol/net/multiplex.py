"""Requests and replies over the lanes of one peer: what every back end of `Channel` shares (PROTOCOL.md §10).

A back end only opens or accepts byte streams: `open_channel` for clients, `LaneServer` for servers. The streams must be
encrypted and must have proved the server's key to the client. Knows no addresses, sockets, certificates or libp2p.
"""

import asyncio
import logging
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NoReturn

from shoal.protocol import limits
from shoal.protocol.dtypes import TAKEN, to_bits
from shoal.protocol.errors import (
    CapacityError,
    ChannelClosed,
    ConnectFailed,
    DeadlineExceeded,
    Draining,
    Malformed,
    ShoalError,
)
from shoal.protocol.handshake import Admitted, ClientHandshake, ServerHandshake
from shoal.protocol.identity import Identity
from shoal.protocol.ids import PeerId
from shoal.protocol.membership import IsRevoked, MemberGate, Membership
from shoal.protocol.messages import Challenge, Hello, Lane, MemberHello, Message, Refusal, Welcome
from shoal.protocol.net.admission import Admission
from shoal.protocol.net.channel import ClientCount, Handler, PieceChannel, PieceHandler, Traffic, no_pieces
from shoal.protocol.net.client_session import ClientSession
from shoal.protocol.net.lane import LaneStream
from shoal.protocol.net.origins import Origin, origin_of
from shoal.protocol.net.refusals import error_of, refusal_of
from shoal.protocol.net.server_session import FROM_CLIENT, ServerSession
from shoal.protocol.net.throttle import Throttle
from shoal.protocol.version import PROTOCOL_VERSION

LaneOpener = Callable[[Lane], Awaitable[tuple[StreamReader, StreamWriter]]]
"""Opens one byte stream to the peer, on which the server has already proved its key. Called once per lane."""

RandomBytes = Callable[[int], bytes]
"""`os.urandom` in main, a seeded generator in tests."""


NONCE_BYTES = 32
SESSION_BYTES = 16
HANDSHAKE_FROM_SERVER: frozenset[type[Message]] = frozenset({Challenge, Welcome, Refusal})
HANDSHAKE_FROM_CLIENT: frozenset[type[Message]] = frozenset({Hello})
HANDSHAKE_FROM_MEMBER: frozenset[type[Message]] = frozenset({MemberHello})

LINGER_S = 1.0
"""How long a refused client may take to close first (p2pd loses our REFUSAL otherwise); RTT and a little."""


async def open_channel(
    identity: Identity,
    peer: PeerId,
    opener: LaneOpener,
    random_bytes: RandomBytes,
    timeout_s: float,
    membership: Membership | None = None,
    throttle: Throttle | None = None,
) -> PieceChannel:
    """Open all lanes to `peer` in parallel, prove our key on each, and return the channel.

    throttle: a node's limits and counts, where it is the client; None: no limits.

    Raises:
        ConnectFailed: a lane did not open in time. AuthenticationFailed: the server's answer is not to our hello.
        Busy, Draining: the server takes no more lanes of ours. UnsupportedVersion, Malformed: not our protocol.
        Whatever `opener` raises.

    Cancellation: lanes that are open already are closed; the server may have let us in.
    """
    session = random_bytes(SESSION_BYTES)
    opened: dict[Lane, tuple[LaneStream, Welcome]] = {}
    traffic = Traffic()

    async def open_lane(lane: Lane) -> None:
        handshake = ClientHandshake(identity, peer, random_bytes(NONCE_BYTES), session, lane, membership)
        nonlocal traffic
        reader, writer = await opener(lane)
        limits_here = throttle.of_connection(writer) if throttle is not None else Throttle(traffic=traffic)
        traffic = limits_here.traffic
        opened[lane] = await _join(LaneStream(reader, writer, HANDSHAKE_FROM_SERVER, limits_here), handshake, peer)

    try:
        async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as openings:
            for lane in Lane:
                openings.create_task(open_lane(lane))
    except BaseException as error:
        for stream, _ in opened.values():
            stream.close()
        if isinstance(error, TimeoutError):
            raise ConnectFailed(f"{peer} did not answer in {timeout_s} s") from error
        if isinstance(error, ExceptionGroup):
            raise error.exceptions[0] from None
        raise
    lanes = {lane: stream for lane, (stream, _) in opened.items()}
    channel = ClientSession(peer, lanes, opened[Lane.ACT][1], random_bytes, traffic)
    channel.start()
    return channel


async def _join(lane: LaneStream, handshake: ClientHandshake, peer: PeerId) -> tuple[LaneStream, Welcome]:
    """The client's handshake on one new stream, which is closed if it fails."""
    try:
        challenge = await lane.receive()
        lane.write(0, handshake.answer(challenge.message))
        answer = (await lane.receive()).message
        if isinstance(answer, Refusal):
            raise error_of(answer, peer)
        return lane, handshake.finish(answer)
    except ChannelClosed as error:
        lane.close()
        raise ConnectFailed(f"{peer} hung up in the handshake") from error
    except BaseException:
        lane.close()
        raise


class LaneServer:
    """Serves all lanes of a listener; one admission (half-open, total, per peer) for all of them."""

    def __init__(
        self,
        identity: Identity,
        handler: Handler,
        random_bytes: RandomBytes,
        log: logging.Logger | None = None,
        throttle: Throttle | None = None,
        gate: MemberGate | None = None,
        pieces: PieceHandler = no_pieces,
    ) -> None:
        self._gate = gate
        self._pieces = pieces
        self.admission = Admission()
        """For a back end whose streams cost something before `serve_lane` (a TLS handshake)."""
        self._peer = identity.peer
        self._handler = handler
        self._random_bytes = random_bytes
        self._log = log or logging.getLogger(__name__)
        self._throttle = throttle or Throttle()
        self._lanes: dict[LaneStream, None] = {}  # in the order in which they came
        self._sessions: dict[tuple[PeerId, bytes], ServerSession] = {}
        self._is_draining = False
        self._is_closed = False
        self._changed = asyncio.Event()

    async def serve_lane(self, reader: StreamReader, writer: StreamWriter, proven_peer: PeerId | None) -> None:
        """Run one accepted stream until it ends; close it. Raises nothing but CancelledError.

        `proven_peer`: whom the layer below has authenticated (libp2p), None where only HELLO says so (direct, memory).
        On a proper end the client has closed first, as p2pd needs it.
        """
        expected = HANDSHAKE_FROM_CLIENT if self._gate is None else HANDSHAKE_FROM_MEMBER
        throttle = self._throttle.of_connection(writer)
        lane = LaneStream(reader, writer, expected, throttle)
        if self._is_closed:
            lane.abort()
            return
        self._lanes[lane] = None
        try:
            origin = origin_of(writer.get_extra_info("peername"))
            await self._serve(lane, proven_peer, origin, throttle.traffic)
        except ChannelClosed:
            lane.close()
            await lane.wait_closed()
        except ShoalError as error:  # a RemoteError, or no place for a connection that is not authenticated
            self._log.debug("a connection was cut: %s", type(error).__name__)
        finally:
            lane.abort()
            self._lanes.pop(lane, None)
            self._changed.set()

    def clients(self) -> list[ClientCount]:
        """Who is connected."""
        return [
            ClientCount(session.peer, len(session.lanes), session.num_served) for session in self._sessions.values()
        ]

    def suspend(self, grace_s: float) -> None:
        """Send DRAIN and refuse new lanes and requests until `resume`; what is in flight goes on.

        Clients close once they are answered. Those that stay get DRAINING to every request, after `resume` too.
        """
        self._is_draining = True
        for session in self._sessions.values():
            session.say_drain(grace_s)

    def expel(self, is_revoked: IsRevoked) -> int:
        """Cut every session whose token was revoked, with what it has in flight, and say how many those were."""
        found = [each for each in self._sessions.values() if each.token_id and is_revoked(each.token_id)]
        for lane in [lane for session in found for lane in session.lanes.values()]:
            lane.abort()
        return len(found)

    def resume(self) -> None:
        """Let clients in again."""
        self._is_draining = False

    async def drain(self, grace_s: float) -> None:
        """Send DRAIN, refuse new lanes and requests, and wait up to `grace_s` until all requests in flight are
        answered and all clients have closed."""
        self.suspend(grace_s)
        try:
            async with asyncio.timeout(grace_s):
                await self._until_empty()
        except TimeoutError:
            return

    async def aclose(self) -> None:
        """Cut every lane and cancel every handler. Idempotent; returns when all `serve_lane` calls have ended."""
        self._is_closed = True
        for lane in self._lanes:
            lane.abort()
        await self._until_empty()

    async def _until_empty(self) -> None:
        while self._lanes:
            self._changed.clear()
            await self._changed.wait()

    async def _serve(
        self, lane: LaneStream, proven_peer: PeerId | None, origin: Origin | None, traffic: Traffic
    ) -> None:
        with ExitStack() as place:
            with self.admission.half_open(origin, lane.abort):
                hello, admitted = await self._receive_hello(lane, proven_peer)
                try:
                    session = self._enter(place, lane, admitted, origin)
                except CapacityError as error:
                    await _send_away(lane, error)
            lane.begin(FROM_CLIENT, traffic)
            lane.write(0, _welcome(hello))
            await session.serve(lane)

    async def _receive_hello(
        self, lane: LaneStream, proven_peer: PeerId | None
    ) -> tuple[Hello | MemberHello, Admitted]:
        handshake = ServerHandshake(self._peer, self._random_bytes(NONCE_BYTES), self._gate)
        lane.write(0, handshake.challenge)
        try:
            async with asyncio.timeout(limits.HANDSHAKE_TIMEOUT_S):
                hello = (await lane.receive()).message
        except TimeoutError as error:
            raise DeadlineExceeded("no HELLO in time") from error
        lane.refuse_early_bytes()
        admitted = handshake.admit(hello, proven_peer)
        if not isinstance(hello, Hello | MemberHello):  # `admit` has raised; this tells the type checker
            raise Malformed("not a HELLO")
        return hello, admitted

    def _enter(self, place: ExitStack, lane: LaneStream, admitted: Admitted, origin: Origin | None) -> ServerSession:
        """Take a place for an authenticated lane, which `place` gives back.

        Raises:
            Busy, Draining: none for this client. Malformed: the session has that lane already.
        """
        if self._is_draining:
            raise Draining("we are leaving")
        if self.admission.is_full:
            self._make_room()
        place.enter_context(self.admission.lane(admitted.peer, origin))
        return place.enter_context(self._member(lane, admitted))

    def _make_room(self) -> None:
        """Cut the session that has been without requests longest, if that is long; the next newcomer has its places."""
        longest = min(self._sessions.values(), key=lambda session: session.asked_at_s, default=None)
        now = asyncio.get_running_loop().time()
        if longest is not None and not longest.num_jobs and now - longest.asked_at_s >= limits.IDLE_S:
            longest.abort()

    @contextmanager
    def _member(self, lane: LaneStream, admitted: Admitted) -> Iterator[ServerSession]:
        key = (admitted.peer, admitted.session)
        session = self._sessions.get(key) or ServerSession(
            admitted.peer, self._handler, self.admission, self._log, admitted.token_id, self._pieces
        )
        if admitted.token_id != session.token_id:
            raise Malformed("a lane of another token in one session")
        if admitted.lane in session.lanes:
            raise Malformed(f"a second {admitted.lane.name} lane in one session")
        self._sessions[key] = session
        session.lanes[admitted.lane] = lane
        try:
            yield session
        finally:
            del session.lanes[admitted.lane]
            if not session.lanes:
                del self._sessions[key]
                session.end()


def _welcome(hello: Hello | MemberHello) -> Welcome:
    credits = limits.MAX_INFLIGHT_REQUESTS, limits.MAX_INFLIGHT_BYTES
    return Welcome(PROTOCOL_VERSION, hello.client_nonce, *credits, to_bits(TAKEN))


async def _send_away(lane: LaneStream, error: CapacityError) -> NoReturn:
    """Refuse an authenticated client and let it close first: p2pd loses the refusal otherwise."""
    lane.write(0, refusal_of(error))
    try:
        async with asyncio.timeout(LINGER_S):
            await lane.receive_all(lambda _: None)
    except TimeoutError:
        pass
    raise ChannelClosed("a client was sent away") from error
