"""A client's channel to one peer: requests out, replies in, whatever order they come in (PROTOCOL.md §10).

Stands between `client.dispatch` and the lanes. Knows no transport and no tensors; never retries.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TypeVar

from shoal.protocol.dtypes import DType, from_bits
from shoal.protocol.errors import ChannelClosed, DeadlineExceeded, Draining, Malformed, ShoalError
from shoal.protocol.frames import Buffer, Frame, encode_header
from shoal.protocol.ids import PeerId
from shoal.protocol.messages import (
    Cancel,
    Chunk,
    Dispatch,
    Drain,
    Fetch,
    Lane,
    Message,
    Partial,
    Ping,
    Pong,
    Refusal,
    Welcome,
)
from shoal.protocol.net.channel import PieceReply, Reply, Traffic
from shoal.protocol.net.credits import Credits
from shoal.protocol.net.lane import LaneStream
from shoal.protocol.net.refusals import error_of
from shoal.protocol.net.routing import LANE_OF_PIECES, lane_for
from shoal.protocol.net.task_set import TaskSet
from shoal.protocol.tensors import request_hash

Answer = TypeVar("Answer")

FROM_SERVER: frozenset[type[Message]] = frozenset({Partial, Chunk, Refusal, Ping, Pong, Drain})
"""What a server may say after the handshake."""


@dataclass(slots=True)
class _Pending:
    """A request that has not been answered. After its deadline or cancellation `future` is done, but its credits come
    back only with the peer's final answer."""

    message: Dispatch | Fetch
    future: asyncio.Future[Reply] | asyncio.Future[PieceReply]
    request_hash: bytes
    size_bytes: int
    timer: asyncio.TimerHandle


@dataclass(frozen=True, slots=True)
class _Spent:
    """Credits that were taken for one request. deadline: the loop's time after which nobody waits for its answer."""

    size_bytes: int
    deadline: float


class ClientSession:
    """Implements `PieceChannel` over open lanes.

    Limits: what is buffered for sending is bounded by the peer's credits; `request` waits for them.
    """

    def __init__(
        self,
        peer: PeerId,
        lanes: Mapping[Lane, LaneStream],
        welcome: Welcome,
        random_bytes: Callable[[int], bytes],
        traffic: Traffic,
    ) -> None:
        """traffic: counts all lanes, the handshake too; a node's own has its other connections in it."""
        self._peer = peer
        self._lanes = dict(lanes)
        self._random_bytes = random_bytes
        self._dtypes = from_bits(welcome.dtypes)
        self._credits = Credits(welcome.credit_requests, welcome.credit_bytes)
        self._pending: dict[int, _Pending] = {}
        self._pings: dict[bytes, asyncio.Future[None]] = {}
        self._request_ids = count(1)
        self._closed_by: ShoalError | None = None
        self._is_draining = False
        self._traffic = traffic
        self._tasks = TaskSet()

    def start(self) -> None:
        """Begin to read all lanes."""
        for name, lane in self._lanes.items():
            lane.begin(FROM_SERVER, self._traffic)
            self._tasks.start(self._read(lane), f"lane {name.name} of {self._peer}")

    @property
    def peer(self) -> PeerId:
        return self._peer

    @property
    def is_closed(self) -> bool:
        return self._closed_by is not None

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    @property
    def dtypes(self) -> frozenset[DType]:
        return self._dtypes

    @property
    def traffic(self) -> Traffic:
        return self._traffic

    def begin(self, message: Dispatch, body: Sequence[Buffer]) -> asyncio.Future[Reply] | None:
        """See `Channel.begin`."""
        self._check_open()
        size = message.body_size()
        if not self._credits.try_take(size):
            return None
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Reply] = loop.create_future()
        self._send(message, body, _Spent(size, loop.time() + message.deadline_ms / 1000), answer)
        return answer

    async def request(self, message: Dispatch, body: Sequence[Buffer]) -> Reply:
        """See `Channel.request`."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Reply] = loop.create_future()
        spent = await self._take(message.body_size(), loop.time() + message.deadline_ms / 1000)
        self._send(message, body, spent, answer)
        return await _finished(answer)

    async def fetch(self, message: Fetch) -> PieceReply:
        """See `PieceChannel.fetch`."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[PieceReply] = loop.create_future()
        spent = await self._take(message.size, loop.time() + message.deadline_ms / 1000)
        self._send(message, (), spent, answer)
        return await _finished(answer)

    async def _take(self, size_bytes: int, deadline: float) -> "_Spent":
        """Credits for a request that takes this many bytes; waits for them.

        Raises:
            ChannelClosed, Draining: the channel takes no request any more. DeadlineExceeded: it takes too long.
        """
        self._check_open()
        if not self._credits.try_take(size_bytes):
            await self._credits.take(size_bytes, deadline)
            if self.is_closed or self._is_draining:
                self._credits.give(size_bytes)
                self._check_open()
        return _Spent(size_bytes, deadline)

    def _send(
        self,
        message: Dispatch | Fetch,
        body: Sequence[Buffer],
        spent: "_Spent",
        answer: asyncio.Future[Reply] | asyncio.Future[PieceReply],
    ) -> None:
        """Send a request; `answer` will have its answer, and whoever cancels that tells the peer."""
        header = encode_header(message)
        digest = request_hash(header, *body)
        request_id = next(self._request_ids)
        lane = lane_for(spent.size_bytes) if isinstance(message, Dispatch) else LANE_OF_PIECES
        self._lanes[lane].write(request_id, message, body, header)
        timer = asyncio.get_running_loop().call_at(spent.deadline, self._expire, request_id)
        self._pending[request_id] = _Pending(message, answer, digest, spent.size_bytes, timer)
        answer.add_done_callback(partial(self._on_done, request_id))

    def _on_done(self, request_id: int, answer: asyncio.Future[Reply] | asyncio.Future[PieceReply]) -> None:
        if answer.cancelled():
            self._abandon(request_id)

    async def ping(self, timeout_s: float) -> float:
        """See `Channel.ping`.

        Raises:
            DeadlineExceeded: no PONG in time. ChannelClosed: the connection ended.
        """
        self._check_not_closed()
        loop = asyncio.get_running_loop()
        nonce = self._random_bytes(8)
        future = self._pings[nonce] = loop.create_future()
        sent_at = loop.time()
        self._lanes[Lane.CTL].write(0, Ping(nonce))
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError as error:
            raise DeadlineExceeded(f"{self._peer} did not answer a ping in {timeout_s} s") from error
        finally:
            self._pings.pop(nonce, None)
            _mark_retrieved(future)
        return loop.time() - sent_at

    async def aclose(self) -> None:
        """See `Channel.aclose`. The client closes first, as p2pd's streams need it."""
        self._shut(ChannelClosed(f"the channel to {self._peer} was closed"))
        await asyncio.gather(*(lane.wait_closed() for lane in self._lanes.values()))
        await self._tasks.aclose()

    def _check_not_closed(self) -> None:
        if self._closed_by is not None:
            raise ChannelClosed(str(self._closed_by))

    def _check_open(self) -> None:
        self._check_not_closed()
        if self._is_draining:
            raise Draining(f"{self._peer} is leaving")

    async def _read(self, lane: LaneStream) -> None:
        """Read one lane to its end, which is the end of the channel: half a session serves nobody."""
        try:
            await lane.receive_all(lambda frame: self._on_frame(lane, frame))
            self._shut(ChannelClosed(f"{self._peer} closed the connection"))
        except ShoalError as error:
            self._shut(error)
        finally:
            self._shut(ChannelClosed(f"the channel to {self._peer} was given up"))

    def _on_frame(self, lane: LaneStream, frame: Frame) -> None:
        match frame.message:
            case Partial() | Chunk() | Refusal():
                self._on_answer(frame)
            case Ping(nonce):
                lane.write(0, Pong(nonce))
            case Pong(nonce):
                future = self._pings.get(nonce)
                if future is not None and not future.done():
                    future.set_result(None)
            case Drain():
                self._is_draining = True
                self._credits.fail(Draining(f"{self._peer} is leaving"))
                self._retire_if_idle()

    def _on_answer(self, frame: Frame) -> None:
        """The one final answer to a request; gives its credits back even when nobody waits any more."""
        pending = self._pending.pop(frame.request_id, None)
        if pending is None:
            raise Malformed(f"{self._peer} answered request {frame.request_id}, which is not open")
        pending.timer.cancel()
        self._credits.give(pending.size_bytes)
        if not pending.future.done():
            self._settle(pending, frame)
        self._retire_if_idle()

    def _settle(self, pending: _Pending, frame: Frame) -> None:
        if isinstance(frame.message, Refusal):
            error = error_of(frame.message, self._peer)
            self._is_draining = self._is_draining or isinstance(error, Draining)
            pending.future.set_exception(error)
        elif (answer := _answer(frame, pending)) is not None:
            pending.future.set_result(answer)  # type: ignore[arg-type]  # of the kind that was asked for
        else:
            error = Malformed(f"{self._peer} answered another request than ours")
            pending.future.set_exception(error)
            raise error  # a peer that mixes up requests is not to be talked to

    def _expire(self, request_id: int) -> None:
        pending = self._pending[request_id]
        if not pending.future.done():
            pending.future.set_exception(DeadlineExceeded(f"no answer of {self._peer} in time"))
            self._lanes[Lane.CTL].write(request_id, Cancel())

    def _abandon(self, request_id: int) -> None:
        pending = self._pending.get(request_id)
        if pending is not None:
            pending.timer.cancel()
            self._lanes[Lane.CTL].write(request_id, Cancel())

    def _retire_if_idle(self) -> None:
        """Close once a draining peer has answered everything: it waits for that, and we must close first."""
        if self._is_draining and not self._pending:
            self._shut(ChannelClosed(f"{self._peer} has left"))

    def _shut(self, reason: ShoalError) -> None:
        """End everything that waits and close all lanes; the first reason stays."""
        if self._closed_by is not None:
            return
        self._closed_by = reason
        self._credits.fail(_as_closed(reason))
        for pending in self._pending.values():
            pending.timer.cancel()
            if not pending.future.done():
                pending.future.set_exception(_as_closed(reason))
        self._pending.clear()
        for future in self._pings.values():
            if not future.done():
                future.set_exception(_as_closed(reason))
        for lane in self._lanes.values():
            lane.close()


def _answer(frame: Frame, pending: _Pending) -> Reply | PieceReply | None:
    """The answer to that request; None if this is none."""
    asked, answer = pending.message, frame.message
    if isinstance(asked, Dispatch):
        if not isinstance(answer, Partial) or answer.request_hash != pending.request_hash:
            return None
        return Reply(answer, frame.body)
    if not isinstance(answer, Chunk) or answer.request_hash != pending.request_hash:
        return None
    fits = answer.size <= asked.size and asked.begin + answer.size <= answer.piece_bytes
    return PieceReply(answer, frame.body) if fits else None


async def _finished(answer: asyncio.Future[Answer]) -> Answer:
    """The result of a future that its own cancelling ends."""
    try:
        return await answer
    except asyncio.CancelledError:
        _mark_retrieved(answer)
        raise


def _mark_retrieved(future: asyncio.Future[Answer]) -> None:
    """Keep asyncio from reporting an error that came in the very moment in which its caller was cancelled."""
    if future.done() and not future.cancelled():
        future.exception()


def _as_closed(reason: ShoalError) -> ChannelClosed:
    """What a request learns that was in flight when the channel ended for `reason`: a new error for each, since an
    exception that is raised twice gathers tracebacks."""
    return ChannelClosed(str(reason))
