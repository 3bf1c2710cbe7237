"""One request to one holder and its answer: the frame that goes out, the checks of what comes back.

Between dispatch, which decides whom to ask, and the channel. Knows nothing of replicas.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from shoal.client.routing.activations import Activations, WireFormat, wire_format
from shoal.client.routing.combine import PartialSum
from shoal.client.routing.grouping import ExpertRows, Ints
from shoal.client.routing.health import Health
from shoal.client.routing.holders import Holder, Holders
from shoal.client.routing.model_id import ModelId
from shoal.protocol.errors import ChannelClosed, Malformed, ShoalError
from shoal.protocol.events import DispatchSent, ExpertsTimed, Observer, ReplyReceived
from shoal.protocol.frames import Buffer
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.messages import Dispatch, DType, Partial
from shoal.protocol.net.channel import Channel, Reply
from shoal.protocol.tensors import encode_rows, read_partial_body, tensor_bytes


@dataclass(frozen=True, slots=True)
class Answered:
    """One answered request: when, and the holder's word on its own part."""

    peer: PeerId
    sent_at: float
    received_at: float
    queue_s: float
    compute_s: float


@dataclass(slots=True)
class LayerCall:
    """One layer's work: hidden states, exact; the router's choice, and how it goes."""

    layer: LayerId
    x: torch.Tensor
    rows: ExpertRows
    give_up_at: float
    """Loop time until which holders that are busy, or not there, are waited for."""
    answered: list[Answered] = field(default_factory=list)
    """In the order in which the answers came."""
    failed: list[PeerId] = field(default_factory=list)
    """Holders whose part others had to compute."""
    awaited: list[tuple[PeerId, tuple[ExpertId, ...]]] = field(default_factory=list)
    """Requests under way: whose, and for which experts."""
    num_pauses: int = 0
    """How often all holders of some expert had failed."""
    _encoded: dict[DType, torch.Tensor] = field(default_factory=dict)
    _bytes: dict[DType, Buffer] = field(default_factory=dict)
    _selected: dict[tuple[ExpertId, ...], ExpertRows] = field(default_factory=dict)

    def encoded(self, dtype: DType) -> torch.Tensor:
        """The hidden states of all tokens in a format, a row each; made once, whoever is asked."""
        if dtype not in self._encoded:
            self._encoded[dtype] = encode_rows(self.x, dtype)
        return self._encoded[dtype]

    def encoded_rows(self, dtype: DType, token_idx: Ints) -> Buffer:
        """The bytes of some tokens' hidden states; those of all are made once."""
        if len(token_idx) < len(self.x):
            return tensor_bytes(self.encoded(dtype)[torch.from_numpy(token_idx)])
        if dtype not in self._bytes:
            self._bytes[dtype] = tensor_bytes(self.encoded(dtype))
        return self._bytes[dtype]

    def selected(self, experts: tuple[ExpertId, ...]) -> ExpertRows:
        """The rows of some experts; cut out once, whoever is asked."""
        if experts not in self._selected:
            self._selected[experts] = self.rows.select(experts)
        return self._selected[experts]

    def awaited_for(self, experts: Collection[ExpertId]) -> tuple[PeerId, ...]:
        """Holders whose answer for some of these is still awaited."""
        return tuple(peer for peer, asked in self.awaited if not set(asked).isdisjoint(experts))


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request under way. token_idx: i64[N], the tokens that it is about; work: as in `Health.work`; started: seconds
    of the clock."""

    call: LayerCall
    holder: Holder
    experts: tuple[ExpertId, ...]
    token_idx: Ints
    message: Dispatch
    macs: int
    num_cold: int
    work: int
    started: float


class Exchange:
    """Asks holders."""

    def __init__(
        self,
        holders: Holders,
        model: ModelId,
        observe: Observer,
        clock: Callable[[], float],
        activations: Activations = Activations.EXACT,
    ) -> None:
        self._activations = activations
        self._holders = holders
        self._model = model
        self._observe = observe
        self._clock = clock

    def work(self, call: LayerCall, peer: PeerId, experts: tuple[ExpertId, ...]) -> int:
        """What some experts of a call are for a holder, in its multiply-accumulates (`Health.work`)."""
        holder = self._holders.holder(peer)
        macs = call.selected(experts).num_pairs * self._model.macs_per_row
        return holder.health.work(macs, holder.num_cold(call.layer, experts))

    def begin(
        self, call: LayerCall, peer: PeerId, experts: tuple[ExpertId, ...], now: float
    ) -> asyncio.Future[PartialSum]:
        """Have a holder compute some experts of a call. now: loop time.

        It fails with a ShoalError as `Channel.request` does; NonFinite, Malformed: an answer that can not be. The
        request is sent when this returns, and no task waits for its answer, unless the holder's credits are spent.
        Cancelling the future tells the holder.
        """
        answer: asyncio.Future[PartialSum] = asyncio.get_running_loop().create_future()
        try:
            asked, channel, body = self._prepare(call, peer, experts)
            reply = channel.begin(asked.message, body)
        except ShoalError as error:
            answer.set_exception(error)
            return answer
        self._observe(DispatchSent(peer, call.layer, len(experts), asked.message.num_tokens, experts))
        asked.holder.health.asked(asked.work, now)
        if reply is None:
            return asyncio.ensure_future(self._ask_in_turn(asked, channel, body))
        reply.add_done_callback(partial(self._pass_on, asked, answer))
        answer.add_done_callback(partial(_end_with, reply))
        return answer

    async def _ask_in_turn(self, asked: "_Asked", channel: Channel, body: Sequence[Buffer]) -> PartialSum:
        """Where the request itself has to wait."""
        try:
            reply = await channel.request(asked.message, body)
        finally:
            asked.holder.health.ended(asked.work)
        return self._read(asked, reply)

    def _pass_on(self, asked: "_Asked", answer: asyncio.Future[PartialSum], reply: asyncio.Future[Reply]) -> None:
        """A reply has come, or will not."""
        asked.holder.health.ended(asked.work)
        if reply.cancelled():
            answer.cancel()
            return
        error = reply.exception()  # also when nobody waits any more, or asyncio would report it
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
            return
        try:
            values = self._read(asked, reply.result())
        except Exception as failure:  # the boundary: whoever waits is told
            answer.set_exception(failure)
        else:
            answer.set_result(values)

    def _prepare(
        self, call: LayerCall, peer: PeerId, experts: tuple[ExpertId, ...]
    ) -> tuple["_Asked", Channel, tuple[Buffer, ...]]:
        """
        Raises:
            ChannelClosed: the holder is gone.
        """
        rows = call.selected(experts)
        token_idx, row_idx = rows.own_tokens(len(call.x))  # only the tokens this holder needs
        holder = self._holders.holder(peer)
        macs, num_cold = len(row_idx) * self._model.macs_per_row, holder.num_cold(call.layer, experts)
        health = holder.health
        work = health.work(macs, num_cold)
        if holder.channel is None:
            raise ChannelClosed(f"{peer} is gone")
        formats = self._format(holder.channel, health)
        message = self._message(call, rows, len(token_idx), health.deadline_s(work), formats)
        body = (
            call.encoded_rows(formats.up, token_idx),
            rows.topk_weights.astype("<f4", copy=False).tobytes(),
            row_idx.astype("<u2").tobytes(),
        )
        asked = _Asked(call, holder, experts, token_idx, message, macs, num_cold, work, self._clock())
        return asked, holder.channel, body

    def _read(self, asked: "_Asked", reply: Reply) -> PartialSum:
        """Check an answer and learn from it."""
        message, health, started = asked.message, asked.holder.health, asked.started
        check_answers(message, reply.message)
        values = read_partial_body(reply.message, reply.body)
        received, peer, layer = self._clock(), asked.holder.peer, asked.call.layer
        queue_s, compute_s = reply.message.queue_us / 1e6, reply.message.compute_us / 1e6
        asked.call.answered.append(Answered(peer, started, received, queue_s, compute_s))
        health.answered(received - started, compute_s, asked.macs, asked.num_cold)
        health.link.carried(message.body_size() + message.reply_size(), received - started, queue_s + compute_s)
        self._observe(ReplyReceived(peer, layer, received - started, queue_s, compute_s))
        return PartialSum(asked.experts, asked.token_idx, values)

    def _format(self, channel: Channel, health: Health) -> WireFormat:
        model = self._model
        rate = health.link.bytes_per_s
        return wire_format(self._activations, model.rounding, model.hidden, channel.dtypes, rate)

    def _message(
        self, call: LayerCall, rows: ExpertRows, num_tokens: int, deadline_s: float, formats: WireFormat
    ) -> Dispatch:
        model = self._model
        return Dispatch(
            model_root=model.root,
            layer=call.layer,
            rounding=model.rounding,
            weight_format=model.weight_format,
            dtype=formats.up,
            num_tokens=num_tokens,
            hidden=model.hidden,
            experts=rows.experts,
            num_rows=rows.num_rows,
            deadline_ms=max(1, round(deadline_s * 1000)),
            reply_dtype=formats.down if formats.down is not DType.F32 else 0,
        )


def _end_with(reply: asyncio.Future[Reply], answer: asyncio.Future[PartialSum]) -> None:
    if answer.cancelled():
        reply.cancel()


def check_answers(message: Dispatch, answer: Partial) -> None:
    """
    Raises:
        Malformed: a partial sum of another shape or format than was asked for.
    """
    asked = (message.num_tokens, message.hidden, message.reply_dtype)
    if (answer.num_tokens, answer.hidden, answer.dtype) != asked:
        raise Malformed("a partial sum of another shape or format than was asked for")


def timed(call: LayerCall, started: float, ended: float) -> ExpertsTimed:
    """Where the time of a finished call went. A holder that claims more work than its answer took is cut to that."""
    first, last = call.answered[0], call.answered[-1]
    exchange_s = first.received_at - first.sent_at
    compute_s = min(first.compute_s, exchange_s)
    queue_s = min(first.queue_s, exchange_s - compute_s)
    straggling_s = last.received_at - first.received_at
    before_s = first.sent_at - started
    failed_s = before_s if call.failed else 0.0
    return ExpertsTimed(
        layer=call.layer,
        num_tokens=len(call.x),
        num_holders=len({answer.peer for answer in call.answered}),
        slowest=last.peer,
        wire_s=exchange_s - compute_s - queue_s,
        queue_s=queue_s,
        compute_s=compute_s,
        straggling_s=straggling_s,
        failed_s=failed_s,
        local_s=ended - started - exchange_s - straggling_s - failed_s,
    )
