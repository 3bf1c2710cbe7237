"""From the router's choice to the layer's routed output, through the swarm: group, choose, send, fail over, combine.

Implements the trunk's seam `RoutedExperts`. One frame per (layer, holder) with all its experts and only the tokens they
need. A holder that fails a request is set aside and the same experts are asked of replicas, so a death costs one retry
and no token. Knows no model beyond `ModelId` and no sockets.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field

import torch

from shoal.client.choose import Plan, choose
from shoal.client.combine import PartialSum, combine
from shoal.client.grouping import ExpertRows, group_by_expert
from shoal.client.holders import Holders
from shoal.client.model_id import ModelId
from shoal.protocol.errors import ChannelClosed, CoverageGap, IntegrityError, Malformed, ShoalError
from shoal.protocol.events import DispatchSent, ExpertsTimed, FailedOver, Observer, ReplyReceived
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.messages import Dispatch, DType, Rounding
from shoal.protocol.tensors import read_partial_body, tensor_bytes

MAX_ATTEMPTS = 6
"""Holders tried for the same experts of one call: more replicas than any swarm keeps, so only bad luck ends here."""

MAX_PAUSE_S = 5.0
"""The longest wait for a holder that is BUSY or failed lately before it is asked again, when no other is left."""

GAP_RETRY_AFTER_S = 30.0
"""A third of a record's life: when holders that are back will have announced themselves."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One layer's work: hidden states as the wire wants them, and the router's choice."""

    layer: LayerId
    x: torch.Tensor
    rows: ExpertRows
    exchanges: list["_Exchange"] = field(default_factory=list)
    """The answers so far, in the order in which they came."""
    failed: list[PeerId] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Exchange:
    """One answered request: when, and the holder's word on its own part."""

    peer: PeerId
    sent_at: float
    received_at: float
    queue_s: float
    compute_s: float


class SwarmExperts:
    """Routed experts that live on other machines."""

    def __init__(self, holders: Holders, model: ModelId, observe: Observer, clock: Callable[[], float]) -> None:
        """clock: seconds, for durations; the loop's own has milliseconds only under uvloop."""
        self._holders = holders
        self._model = model
        self._observe = observe
        self._clock = clock

    async def __call__(
        self, layer: LayerId, x: torch.Tensor, topk_idx: torch.Tensor, topk_weights: torch.Tensor
    ) -> torch.Tensor:
        """Weighted sum over the chosen experts. x: f32|bf16[T, H]; topk_idx: i64[T, K]; topk_weights: f32[T, K].

        Returns f32[T, H].

        Raises:
            IntegrityError: x is not finite. CoverageGap: nobody reachable holds an expert. ShoalError: every replica
            failed; the last one's error.

        Cancellation: requests in flight are cancelled at their holders.
        """
        if not bool(torch.isfinite(x).all()):
            # said here, or every holder would refuse and be taken for a liar
            raise IntegrityError(f"the hidden states of layer {layer} are not finite: the trunk's weights are damaged")
        started = self._clock()
        wire_dtype = torch.bfloat16 if self._model.rounding is Rounding.BF16 else torch.float32
        rows = group_by_expert(topk_idx, topk_weights)
        call = _Call(layer, x.to(wire_dtype), rows)
        partials = await self._compute(call, rows.experts, tried=())
        total = combine(partials, x.shape[0], x.shape[1])
        self._observe(_timed(call, started, self._clock()))
        return total

    async def _compute(self, call: _Call, experts: Sequence[ExpertId], tried: tuple[PeerId, ...]) -> list[PartialSum]:
        """Have these experts computed by whoever is best, not by `tried`."""
        plan = choose(experts, self._holders.usable(call.layer, tried), self._holders.costs())
        if plan.uncovered:
            plan = await self._last_resort(call, experts, tried)
        parts = [self._ask(call, peer, share, tried) for peer, share in plan.shares.items()]
        if len(parts) == 1:
            return await parts[0]
        return [partial for partials in await _all(parts) for partial in partials]

    async def _last_resort(self, call: _Call, experts: Sequence[ExpertId], tried: tuple[PeerId, ...]) -> Plan:
        """Look who has joined or is back; else ask again those that were slow or busy, when they said.

        Raises:
            CoverageGap: nobody holds some of the experts.
        """
        await self._holders.refresh()
        plan = choose(experts, self._holders.usable(call.layer, tried), self._holders.costs())
        if plan.uncovered:
            plan = choose(experts, self._holders.reachable(call.layer), self._holders.costs())
            if plan.uncovered:
                raise CoverageGap(call.layer, plan.uncovered, GAP_RETRY_AFTER_S)
            await asyncio.sleep(min(self._holders.pause_s(plan.shares), MAX_PAUSE_S))
        return plan

    async def _ask(
        self, call: _Call, peer: PeerId, experts: tuple[ExpertId, ...], tried: tuple[PeerId, ...]
    ) -> list[PartialSum]:
        """Ask one holder; on a failure that another replica may mend, ask others."""
        started = self._clock()
        try:
            return [await self._exchange(call, peer, experts)]
        except ShoalError as error:
            self._holders.failed(peer, error)
            call.failed.append(peer)
            if not error.retry_elsewhere or len(tried) + 1 >= MAX_ATTEMPTS:
                raise
            failure = error
        partials = await self._retry(call, experts, (*tried, peer), failure)
        self._observe(FailedOver(peer, call.layer, experts, type(failure).__name__, self._clock() - started))
        return partials

    async def _retry(
        self, call: _Call, experts: tuple[ExpertId, ...], tried: tuple[PeerId, ...], failure: ShoalError
    ) -> list[PartialSum]:
        try:
            return await self._compute(call, experts, tried)
        except CoverageGap as gap:
            raise gap from failure

    async def _exchange(self, call: _Call, peer: PeerId, experts: tuple[ExpertId, ...]) -> PartialSum:
        """One request and its reply."""
        rows = call.rows.select(experts)
        token_idx, row_idx = torch.unique(rows.row_idx, return_inverse=True)  # only the tokens this holder needs
        holder = self._holders.holder(peer)
        macs = len(row_idx) * self._model.macs_per_row
        message = self._message(call, rows, len(token_idx), holder.health.deadline_s(macs))
        body = (
            tensor_bytes(call.x[token_idx]),
            tensor_bytes(rows.topk_weights),
            tensor_bytes(row_idx.to(torch.int32).to(torch.uint16)),
        )
        if holder.channel is None:
            raise ChannelClosed(f"{peer} is gone")
        self._observe(DispatchSent(peer, call.layer, len(experts), len(token_idx)))
        started = self._clock()
        reply = await holder.channel.request(message, body)
        if (reply.message.num_tokens, reply.message.hidden) != (message.num_tokens, message.hidden):
            raise Malformed("a partial sum of another shape than was asked for")
        values = read_partial_body(reply.message, reply.body)
        received = self._clock()
        exchange_s = received - started
        queue_s, compute_s = reply.message.queue_us / 1e6, reply.message.compute_us / 1e6
        call.exchanges.append(_Exchange(peer, started, received, queue_s, compute_s))
        holder.health.answered(exchange_s, compute_s, macs)
        self._observe(ReplyReceived(peer, call.layer, exchange_s, queue_s, compute_s))
        return PartialSum(experts, token_idx, values)

    def _message(self, call: _Call, rows: ExpertRows, num_tokens: int, deadline_s: float) -> Dispatch:
        model = self._model
        return Dispatch(
            model_root=model.root,
            layer=call.layer,
            rounding=model.rounding,
            weight_format=model.weight_format,
            dtype=DType.BF16 if model.rounding is Rounding.BF16 else DType.F32,
            num_tokens=num_tokens,
            hidden=model.hidden,
            experts=rows.experts,
            num_rows=rows.num_rows,
            deadline_ms=max(1, round(deadline_s * 1000)),
        )


def _timed(call: _Call, started: float, ended: float) -> ExpertsTimed:
    """Where the time of a finished call went. A holder that claims more work than its answer took is cut to that."""
    first, last = call.exchanges[0], call.exchanges[-1]
    exchange_s = first.received_at - first.sent_at
    compute_s = min(first.compute_s, exchange_s)
    queue_s = min(first.queue_s, exchange_s - compute_s)
    straggling_s = last.received_at - first.received_at
    before_s = first.sent_at - started
    failed_s = before_s if call.failed else 0.0
    return ExpertsTimed(
        layer=call.layer,
        num_tokens=len(call.x),
        num_holders=len({exchange.peer for exchange in call.exchanges}),
        slowest=last.peer,
        wire_s=exchange_s - compute_s - queue_s,
        queue_s=queue_s,
        compute_s=compute_s,
        straggling_s=straggling_s,
        failed_s=failed_s,
        local_s=ended - started - exchange_s - straggling_s - failed_s,
    )


async def _all(parts: Sequence[Coroutine[None, None, list[PartialSum]]]) -> list[list[PartialSum]]:
    """Run the parts of a layer together; the first error cancels the others and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(part) for part in parts]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
