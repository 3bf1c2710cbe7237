"""A server's side of one client session: requests in, one answer to each, whatever the handler does (PROTOCOL.md §10).

Stands between the lanes and `node.server`'s handler. Knows no transport, no tensors, no experts.
"""

import asyncio
import logging
import traceback
from collections import deque
from dataclasses import dataclass

from shoal.protocol import limits
from shoal.protocol.errors import (
    Cancelled,
    ChannelClosed,
    DeadlineExceeded,
    Draining,
    Malformed,
    PeerFailed,
    ShoalError,
    WireCode,
)
from shoal.protocol.frames import Frame
from shoal.protocol.ids import PeerId
from shoal.protocol.messages import Cancel, Dispatch, Drain, Fetch, Lane, Message, Ping, Pong
from shoal.protocol.net.admission import Admission
from shoal.protocol.net.channel import Handler, PieceHandler, PieceReply, PieceRequest, Reply, Request, no_pieces
from shoal.protocol.net.lane import LaneStream
from shoal.protocol.net.refusals import refusal_of
from shoal.protocol.net.routing import LANE_OF_PIECES, lane_for
from shoal.protocol.tensors import request_hash

FROM_CLIENT: frozenset[type[Message]] = frozenset({Dispatch, Fetch, Cancel, Ping, Pong})
"""What a client may say after the handshake."""


MIN_LOOK_S = 1.0
"""Between two looks at a silent client: rounding must not make a wait of nothing, again and again."""


@dataclass(slots=True, eq=False)
class _Job:
    """A request that is being served.

    `lane`: where it came, later where its answer went. `stopped_by`: why we cancelled its handler, if we did.
    """

    request_id: int
    lane: LaneStream
    size_bytes: int
    timer: asyncio.TimerHandle
    task: asyncio.Task[None] | None = None
    stopped_by: ShoalError | None = None
    is_answered: bool = False


class ServerSession:
    """The lanes of one (peer, session id) and its requests in flight. A client that falls silent is asked by PING and
    cut if it does not answer.

    Limits: per peer by `Admission`; over them BUSY at once. A handler runs in the task group of the lane that brought
    its request and is cancelled with it.
    """

    def __init__(
        self,
        peer: PeerId,
        handler: Handler,
        admission: Admission,
        log: logging.Logger,
        token_id: str = "",
        pieces: PieceHandler = no_pieces,
    ) -> None:
        self.peer = peer
        self.token_id = token_id
        """By which the client is a member; empty in an open swarm."""
        self.lanes: dict[Lane, LaneStream] = {}
        self.is_draining = False
        self.num_served = 0
        """Requests that were answered with a result."""
        self._handler = handler
        self._pieces = pieces
        self._admission = admission
        self._log = log
        self._jobs: dict[int, _Job] = {}
        loop = asyncio.get_running_loop()
        self.asked_at_s = self._heard_at_s = loop.time()
        self._is_asked = False
        self._timer = loop.call_later(limits.IDLE_S, self._look)
        # CANCEL (ctl) may overtake its DISPATCH (bulk); older ones belong to requests that were answered meanwhile
        self._early_cancels: deque[int] = deque(maxlen=limits.MAX_INFLIGHT_REQUESTS)

    @property
    def num_jobs(self) -> int:
        """Requests in flight."""
        return len(self._jobs)

    async def serve(self, lane: LaneStream) -> None:
        """Serve one lane until it ends; its handlers end with it.

        Raises:
            ChannelClosed: the client closed or is gone. RemoteError: it broke the protocol.
        """
        try:
            async with asyncio.TaskGroup() as handlers:
                held = self._admission.hold_unfinished
                await lane.receive_all(lambda frame: self._on_frame(lane, frame, handlers), held)
                raise ChannelClosed("the client closed")  # an error, because that cancels the handlers
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    def abort(self) -> None:
        """Cut every lane."""
        for lane in self.lanes.values():
            lane.abort()

    def end(self) -> None:
        """All lanes have ended: nobody is looked after any more."""
        self._timer.cancel()

    def say_drain(self, grace_s: float) -> None:
        """Tell the client to go elsewhere with new requests."""
        self.is_draining = True
        if Lane.CTL in self.lanes:
            self.lanes[Lane.CTL].write(0, Drain(min(round(grace_s * 1000), limits.MAX_DURATION_MS)))

    def _look(self) -> None:
        """Ask a silent client whether it lives, once; cut one that does not say so."""
        loop = asyncio.get_running_loop()
        silent_s, wait_s = loop.time() - self._heard_at_s, limits.PONG_TIMEOUT_S
        if silent_s < limits.IDLE_S:
            wait_s = max(MIN_LOOK_S, limits.IDLE_S - silent_s)
        elif self._is_asked or Lane.CTL not in self.lanes:
            self.abort()
        else:
            self._is_asked = True
            self.lanes[Lane.CTL].write(0, Ping(bytes(8)))
        self._timer = loop.call_later(wait_s, self._look)

    def _on_frame(self, lane: LaneStream, frame: Frame, handlers: asyncio.TaskGroup) -> None:
        self._heard_at_s = asyncio.get_running_loop().time()
        self._is_asked = False
        match frame.message:
            case Dispatch() | Fetch():
                self._on_request(lane, frame, frame.message, handlers)
            case Cancel():
                self._on_cancel(frame.request_id)
            case Ping(nonce):
                lane.write(0, Pong(nonce))

    def _on_request(
        self, lane: LaneStream, frame: Frame, message: Dispatch | Fetch, handlers: asyncio.TaskGroup
    ) -> None:
        request_id = frame.request_id
        if request_id in self._jobs:
            raise Malformed(f"request id {request_id} is in use")
        size = message.size if isinstance(message, Fetch) else len(frame.body)
        try:
            self._check_wanted(request_id)
            self._admission.begin_request(self.peer, size)
        except ShoalError as error:
            lane.write(request_id, refusal_of(error))
            return
        loop = asyncio.get_running_loop()
        self.asked_at_s = loop.time()
        deadline = self.asked_at_s + message.deadline_ms / 1000
        digest = request_hash(frame.header_bytes, frame.body)
        request = (
            PieceRequest(self.peer, message, digest, deadline) if isinstance(message, Fetch)
            else Request(self.peer, message, frame.body, digest, deadline)
        )  # fmt: skip
        job = _Job(request_id, lane, size, loop.call_at(deadline, self._on_deadline, request_id))
        self._jobs[request_id] = job
        job.task = handlers.create_task(self._run(job, request))
        job.task.add_done_callback(lambda _: self._finish(job))

    def _check_wanted(self, request_id: int) -> None:
        if self.is_draining:
            raise Draining("we are leaving")
        if request_id in self._early_cancels:
            self._early_cancels.remove(request_id)
            raise Cancelled("cancelled before it came")

    def _on_cancel(self, request_id: int) -> None:
        job = self._jobs.get(request_id)
        if job is None:
            self._early_cancels.append(request_id)
        else:
            self._stop(job, Cancelled("the client cancelled"))

    def _on_deadline(self, request_id: int) -> None:
        self._stop(self._jobs[request_id], DeadlineExceeded("the request's deadline has passed"))

    def _stop(self, job: _Job, reason: ShoalError) -> None:
        if job.stopped_by is None and job.task is not None:
            job.stopped_by = reason
            job.task.cancel()

    async def _run(self, job: _Job, request: Request | PieceRequest) -> None:
        """The task of one request: the boundary at which every error becomes an answer."""
        try:
            if isinstance(request, Request):
                self._answer(job, await self._handler(request))
            else:
                self._give(job, await self._pieces(request))
        except ShoalError as error:
            if error.wire_code is WireCode.INTERNAL:
                self._report(request, error)
            self._refuse(job, error)
        except Exception as error:
            self._report(request, error)
            self._refuse(job, PeerFailed("the handler failed"))
        if not job.lane.has_backlog:
            return
        try:
            await job.lane.drain()
        except ShoalError:
            job.lane.abort()  # the client does not read; ends the lane's reading and so this session

    def _answer(self, job: _Job, reply: Reply) -> None:
        size = reply.message.body_size()
        job.lane = self.lanes.get(lane_for(size), job.lane)
        job.lane.write(job.request_id, reply.message, (reply.body,))
        job.is_answered = True
        self.num_served += 1

    def _give(self, job: _Job, reply: PieceReply) -> None:
        job.lane = self.lanes.get(LANE_OF_PIECES, job.lane)
        job.lane.write(job.request_id, reply.message, (reply.body,))
        job.is_answered = True

    def _refuse(self, job: _Job, error: ShoalError) -> None:
        job.lane.write(job.request_id, refusal_of(error))
        job.is_answered = True

    def _finish(self, job: _Job) -> None:
        """Runs when the handler has really ended, so that nobody holds more handlers than the limits say."""
        job.timer.cancel()
        del self._jobs[job.request_id]
        self._admission.end_request(self.peer, job.size_bytes)
        if job.stopped_by is None:
            return
        if not job.is_answered:
            self._refuse(job, job.stopped_by)
        elif job.lane.has_backlog:
            job.lane.abort()  # answered, but the client has read nothing until the deadline

    def _report(self, request: Request | PieceRequest, error: Exception) -> None:
        """Log a bug of the handler: type and place, never a message, which may quote what was computed on (R11)."""
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"layer {request.message.layer}" if isinstance(request, Request) else "a piece"
        self._log.error(
            "%s at %s:%d while serving %s to %s",
            type(error).__name__, place.filename, place.lineno, what, request.peer,
        )  # fmt: skip
