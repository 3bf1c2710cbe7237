"""One request to one holder and its answer: the frame that goes out, the checks of what comes back.

Between dispatch, which decides whom to ask, and the channel. Knows nothing of replicas.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np
import torch

from shoal.client.routing.activations import Activations, WireFormat, wire_format
from shoal.client.routing.combine import PartialSum
from shoal.client.routing.grouping import ExpertRows
from shoal.client.routing.health import Health
from shoal.client.routing.holders import Holders
from shoal.client.routing.model_id import ModelId
from shoal.protocol.errors import ChannelClosed, Malformed
from shoal.protocol.events import DispatchSent, ExpertsTimed, Observer, ReplyReceived
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.messages import Dispatch, DType, Partial
from shoal.protocol.net.channel import Channel
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
    _selected: dict[tuple[ExpertId, ...], ExpertRows] = field(default_factory=dict)

    def encoded(self, dtype: DType) -> torch.Tensor:
        """The hidden states of all tokens in a format, a row each; made once, whoever is asked."""
        if dtype not in self._encoded:
            self._encoded[dtype] = encode_rows(self.x, dtype)
        return self._encoded[dtype]

    def selected(self, experts: tuple[ExpertId, ...]) -> ExpertRows:
        """The rows of some experts; cut out once, whoever is asked."""
        if experts not in self._selected:
            self._selected[experts] = self.rows.select(experts)
        return self._selected[experts]

    def awaited_for(self, experts: Collection[ExpertId]) -> tuple[PeerId, ...]:
        """Holders whose answer for some of these is still awaited."""
        return tuple(peer for peer, asked in self.awaited if not set(asked).isdisjoint(experts))


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

    async def ask(self, call: LayerCall, peer: PeerId, experts: tuple[ExpertId, ...], now: float) -> PartialSum:
        """Have a holder compute some experts of a call. now: loop time.

        Raises:
            ShoalError: as `Channel.request`; NonFinite, Malformed: an answer that cannot be.

        *Cancellation:* the holder is told.
        """
        rows = call.selected(experts)
        token_idx, row_idx = rows.own_tokens(len(call.x))  # only the tokens this holder needs
        holder = self._holders.holder(peer)
        macs, num_cold = len(row_idx) * self._model.macs_per_row, holder.num_cold(call.layer, experts)
        work = holder.health.work(macs, num_cold)
        if holder.channel is None:
            raise ChannelClosed(f"{peer} is gone")
        formats = self._format(holder.channel, holder.health)
        message = self._message(call, rows, len(token_idx), holder.health.deadline_s(work), formats)
        encoded = call.encoded(formats.up)
        body = (
            tensor_bytes(encoded if len(token_idx) == len(encoded) else encoded[token_idx]),
            tensor_bytes(rows.topk_weights),
            row_idx.numpy().astype("<u2").view(np.uint8).data,
        )
        self._observe(DispatchSent(peer, call.layer, len(experts), len(token_idx), experts))
        started = self._clock()
        holder.health.asked(work, now)
        try:
            reply = await holder.channel.request(message, body)
        finally:
            holder.health.ended(work)
        check_answers(message, reply.message)
        values = read_partial_body(reply.message, reply.body)
        received = self._clock()
        queue_s, compute_s = reply.message.queue_us / 1e6, reply.message.compute_us / 1e6
        call.answered.append(Answered(peer, started, received, queue_s, compute_s))
        holder.health.answered(received - started, compute_s, macs, num_cold)
        num_bytes = message.body_size() + message.reply_size()
        holder.health.link.carried(num_bytes, received - started, queue_s + compute_s)
        self._observe(ReplyReceived(peer, call.layer, received - started, queue_s, compute_s))
        return PartialSum(experts, token_idx, values)

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
