"""From the router's choice to the layer's routed output, through the swarm: group, choose, send, fail over, combine.

Implements the trunk's seam `RoutedExperts`. One frame per (layer, holder) with all its experts and only the tokens they
need. A holder that fails, or is slower than it ever was, is overtaken by its replicas: a death costs one retry and no
token. Extra requests have budgets, so that trouble does not breed trouble. Knows no model beyond `ModelId` and no
sockets.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from shoal.client.routing.activations import Activations
from shoal.client.routing.choose import Held, Plan, choose_disks, choose_in_tiers, with_disks
from shoal.client.routing.combine import PartialSum, combine
from shoal.client.routing.exchange import Exchange, LayerCall, timed
from shoal.client.routing.grouping import group_by_expert
from shoal.client.routing.health import Health, Standing
from shoal.client.routing.hedge import Budget, all_within, end, race
from shoal.client.routing.holders import Holders
from shoal.client.routing.model_id import ModelId
from shoal.protocol.errors import Busy, CoverageGap, DeadlineExceeded, IntegrityError, NotHeld, ShoalError
from shoal.protocol.events import FailedOver, Hedged, Observer
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.messages import Rounding
from shoal.protocol.tensors import is_finite

MAX_WAIT_S = 30.0
"""How long a layer waits for holders that are all busy or gone before its error: most restarts are shorter."""

HEDGE_SHARE, HEDGE_BURST = 0.05, 4.0
"""Requests sent twice because an answer is late, as a share of all (DESIGN §9), and how many at once."""

RETRY_SHARE, RETRY_BURST = 0.1, 32.0
"""The same for requests sent again because their holder failed; beyond it retries wait. The burst is one layer whose
holders all die at once."""

FIRST_PAUSE_S, MAX_PAUSE_S = 0.05, 2.0
"""Before all holders of an expert are asked again: doubled from the first to the last, with full jitter."""

ASKED = (Standing.USABLE, Standing.DOUBTED)
"""Whom a request may go to at once, the better first."""

GAP_POLL_S = 1.0
"""Between two looks into the directory while nobody holds an expert."""

GAP_RETRY_AFTER_S = 30.0
"""A third of a record's life: when holders that are back will have announced themselves."""


class SwarmExperts:
    """Routed experts that live on other machines."""

    def __init__(
        self,
        holders: Holders,
        model: ModelId,
        observe: Observer,
        clock: Callable[[], float],
        draw: Callable[[], float],
        max_wait_s: float = MAX_WAIT_S,
        activations: Activations = Activations.EXACT,
    ) -> None:
        """clock: seconds, for durations; the loop's own has milliseconds only under uvloop. draw: a number in 0..1, for
        jitter. max_wait_s: how long a layer may wait for experts that are busy or gone; 0: not at all. activations: how
        hidden states travel; `auto` needs holders whose links are measured."""
        self._holders = holders
        self._rounding = model.rounding
        self._observe = observe
        self._clock = clock
        self._draw = draw
        self._max_wait_s = max_wait_s
        self._exchange = Exchange(holders, model, observe, clock, activations)
        self._hedges = Budget(HEDGE_SHARE, HEDGE_BURST)
        self._retries = Budget(RETRY_SHARE, RETRY_BURST)

    async def __call__(
        self, layer: LayerId, x: torch.Tensor, topk_idx: torch.Tensor, topk_weights: torch.Tensor
    ) -> torch.Tensor:
        """Weighted sum over the chosen experts. x: f32|bf16[T, H]; topk_idx: i64[T, K]; topk_weights: f32[T, K].

        Returns f32[T, H].

        Raises:
            IntegrityError: x is not finite. CoverageGap: for `max_wait_s`, nobody reachable held an expert. ShoalError:
            for as long, every replica failed; the last one's error.

        *Cancellation:* requests in flight are cancelled at their holders.
        """
        if not is_finite(x):
            # said here, or every holder would refuse and be taken for a liar
            raise IntegrityError(f"the hidden states of layer {layer} are not finite: the trunk's weights are damaged")
        started = self._clock()
        wire_dtype = torch.bfloat16 if self._rounding is Rounding.BF16 else torch.float32
        rows = group_by_expert(topk_idx, topk_weights)
        call = LayerCall(layer, x.to(wire_dtype), rows, _now() + self._max_wait_s)
        partials = await self._compute(call, rows.experts)
        total = combine(partials, x.shape[0], x.shape[1])
        self._observe(timed(call, started, self._clock()))
        return total

    async def _compute(self, call: LayerCall, experts: Sequence[ExpertId]) -> list[PartialSum]:
        """Have these experts computed by whoever is best."""
        return await self._carry_out(call, await self._plan(call, experts), tried=())

    async def _carry_out(self, call: LayerCall, plan: Plan, tried: tuple[PeerId, ...]) -> list[PartialSum]:
        """Ask all holders of a plan; those that are late or fail are replaced.

        While all answer in time there is no task: the requests are sent here, and their answers are futures.
        """
        shares = (*plan.shares.items(), *plan.cold.items())
        requests = [self._begin(call, peer, share, (*tried, peer)) for peer, share in shares]
        if not requests:
            return []
        answers = [request.answer for request in requests]
        try:
            if await all_within(answers, min(request.patience.first_s for request in requests)):
                return [answer.result() for answer in answers]
            parts = [self._see_through(request) for request in requests]
            return [part for partials in await _all(parts) for part in partials]
        finally:
            await end(*answers)  # of those that have succeeded it is the end already

    def _begin(
        self, call: LayerCall, peer: PeerId, experts: tuple[ExpertId, ...], tried: tuple[PeerId, ...]
    ) -> "_Request":
        """Ask one holder."""
        self._hedges.earn()
        self._retries.earn()
        patience = self._patience(call, peer, experts)
        started, asked = self._clock(), (peer, experts)
        answer = self._exchange.begin(call, peer, experts, _now())
        call.awaited.append(asked)
        answer.add_done_callback(lambda _: call.awaited.remove(asked))
        return _Request(call, peer, experts, tried, patience, started, answer)

    async def _see_through(self, request: "_Request") -> list[PartialSum]:
        """Wait for one holder; if it is late or fails, ask others."""
        left_s = max(0.0, request.started + request.patience.first_s - self._clock())
        try:
            raced = await race(_alone(request.answer), left_s, partial(self._when_late, request))
        except ShoalError as error:
            self._note_failure(request, error)
            if not error.retry_elsewhere:
                raise
            failure = error
        else:
            self._note_backup(request, raced.is_backup, self._clock() - request.started)
            return raced.result
        partials = await self._retry(request, failure)
        self._note_failover(request, type(failure), self._clock() - request.started)
        return partials

    def _patience(self, call: LayerCall, peer: PeerId, experts: tuple[ExpertId, ...]) -> "_Patience":
        health = self._holders.holder(peer).health
        work = self._exchange.work(call, peer, experts)
        return _Patience(
            health, health.hedge_after_s(work), health.rto_s(work), health.num_in_flight + 1, health.num_answered
        )

    async def _when_late(self, request: "_Request") -> Coroutine[None, None, list[PartialSum]]:
        """Another way to the same answer, when it is time for one and there is one; else this waits on. To be called
        when `request.patience.first_s` have passed.

        Later than most of its answers: within the budget of hedges. Later than it ever was: of retries. A replica that
        is busy, or a budget that is spent, may be otherwise a timeout later; the holder's own deadline is much longer.
        """
        patience = request.patience
        rto_s = patience.rto_s
        await _until_late(patience)
        if patience.hedge_after_s < rto_s:
            plan = self._elsewhere(request, (Standing.USABLE,))
            if not plan.uncovered and self._hedges.take():
                request.is_hedged = True
                return self._carry_out(request.call, plan, request.tried)
            await asyncio.sleep(rto_s - patience.hedge_after_s)
        while True:
            plan = self._elsewhere(request, ASKED)
            if not plan.uncovered and self._retries.take():
                return self._carry_out(request.call, plan, request.tried)
            await asyncio.sleep(rto_s)

    def _note_failure(self, request: "_Request", error: ShoalError) -> None:
        self._holders.failed(request.peer, error)
        if isinstance(error, NotHeld):
            self._holders.not_held(request.peer, request.call.layer, request.experts)

    def _note_backup(self, request: "_Request", has_won: bool, call_s: float) -> None:
        """What a race tells of the holder that was asked first."""
        if has_won:
            work = self._exchange.work(request.call, request.peer, request.experts)
            self._holders.overtaken(request.peer, call_s, work)
        if request.is_hedged:
            self._observe(Hedged(request.peer, request.call.layer, request.experts, has_won, call_s))
        elif has_won:
            self._note_failover(request, DeadlineExceeded, call_s)

    def _note_failover(self, request: "_Request", reason: type[ShoalError], call_s: float) -> None:
        request.call.failed.append(request.peer)
        self._observe(FailedOver(request.peer, request.call.layer, request.experts, reason.__name__, call_s))

    async def _retry(self, request: "_Request", failure: ShoalError) -> list[PartialSum]:
        """Ask those that have not been tried; when there are none, everybody again after a pause.

        Raises:
            ShoalError: the time that the layer may wait is over; `failure`, or a gap that it caused.
        """
        call, tried = request.call, request.tried
        plan = self._last_resort(call, request.experts, self._elsewhere(request, ASKED), tried)
        if isinstance(failure, DeadlineExceeded) and plan.cold:
            self._holders.fell_silent(request.peer)
        if (plan.uncovered or not self._retries.take()) and not await self._has_paused(call):
            plan = self._ask_disks(call, Plan({}, request.experts), hoped_for=(), excluded=tried)
            if plan.uncovered:
                raise failure
        if plan.uncovered:
            plan, tried = await self._plan_after(failure, call, request.experts), ()
        return await self._carry_out(call, plan, tried)

    async def _has_paused(self, call: LayerCall) -> bool:
        """Before the same holders are asked again: longer each time, with full jitter. False: the layer has no time for
        a pause."""
        call.num_pauses += 1
        pause_s = min(FIRST_PAUSE_S * 2.0**call.num_pauses, MAX_PAUSE_S) * self._draw()
        if _now() + pause_s > call.give_up_at:
            return False
        await asyncio.sleep(pause_s)
        return True

    async def _plan_after(self, failure: ShoalError, call: LayerCall, experts: Sequence[ExpertId]) -> Plan:
        try:
            return await self._plan(call, experts)
        except CoverageGap as gap:
            raise gap from failure

    async def _plan(self, call: LayerCall, experts: Sequence[ExpertId]) -> Plan:
        """Wait, as long as the layer may, until these experts can be asked of somebody.

        A holder whose answer is still awaited is asked again only if nobody else has them: it may be cut off, and a
        replica that has failed once, or is busy, is the better hope.

        Raises:
            CoverageGap: nobody holds some of them. Busy: their holders are all busy.
        """
        while True:
            awaited = call.awaited_for(experts)
            if awaited and self._cover(call, experts, (*ASKED, Standing.BUSY), awaited).uncovered:
                awaited = ()
            plan = self._last_resort(call, experts, self._cover(call, experts, ASKED, awaited))
            if not plan.uncovered:
                return plan
            error, pause_s = await self._obstacle(call, experts, awaited)
            if error is None:
                continue
            if _now() + pause_s > call.give_up_at:
                plan = self._ask_disks(call, plan, hoped_for=())
                if not plan.uncovered:
                    return plan
                raise error
            await asyncio.sleep(pause_s)

    async def _obstacle(
        self, call: LayerCall, experts: Sequence[ExpertId], awaited: tuple[PeerId, ...]
    ) -> tuple[ShoalError | None, float]:
        """Why nobody but `awaited` can be asked, and for how long to wait. None: that has changed meanwhile."""
        plan = self._last_resort(call, experts, self._cover(call, experts, (*ASKED, Standing.BUSY), awaited))
        if plan.uncovered:
            await self._holders.refresh()
            plan = self._last_resort(call, experts, self._cover(call, experts, (*ASKED, Standing.BUSY)))
        if plan.uncovered:
            return CoverageGap(call.layer, plan.uncovered, GAP_RETRY_AFTER_S), GAP_POLL_S * (0.5 + self._draw())
        pause_s = self._holders.busy_for_s(plan.peers)
        if pause_s == 0:
            return None, 0.0
        return Busy(f"every holder of some experts of layer {call.layer}", pause_s), pause_s

    def _elsewhere(self, request: "_Request", standings: Sequence[Standing]) -> Plan:
        """Who would compute the experts of a request instead of those that were tried."""
        awaited = request.call.awaited_for(request.experts)
        return self._cover(request.call, request.experts, standings, (*request.tried, *awaited))

    def _last_resort(
        self, call: LayerCall, experts: Sequence[ExpertId], plan: Plan, tried: tuple[PeerId, ...] = ()
    ) -> Plan:
        """The plan, with disks for what nobody else is left for.

        A holder is asked for an expert on its disk only when every holder that has it in memory is gone, has its
        breaker open, or has failed this request or let its deadline pass; who is busy is waited for as long as the
        layer may wait.
        """
        if not (plan.uncovered or self._holders.doubtful(plan.shares)):
            return plan
        awaited = call.awaited_for(experts)
        failed = [peer for peer in tried if peer not in awaited]
        return self._ask_disks(call, plan, self._holders.hoped_for(call.layer, failed), (*tried, *awaited))

    def _ask_disks(
        self, call: LayerCall, plan: Plan, hoped_for: Collection[ExpertId], excluded: tuple[PeerId, ...] = ()
    ) -> Plan:
        doubtful = self._holders.doubtful(plan.shares)
        if not (plan.uncovered or doubtful):
            return plan
        wanted = (*plan.uncovered, *(expert for peer in doubtful for expert in plan.shares[peer]))
        tiers = [self._holders.of_standing(call.layer, each, excluded, is_cold=True) for each in ASKED]
        costs = self._holders.costs(peer for tier in tiers for peer in tier)
        last = choose_disks(wanted, tiers, costs, self._holders.read_costs())
        return with_disks(plan, doubtful, hoped_for, last)

    def _cover(
        self,
        call: LayerCall,
        experts: Sequence[ExpertId],
        standings: Sequence[Standing],
        excluded: tuple[PeerId, ...] = (),
    ) -> Plan:
        costs = dict[PeerId, float]()

        def tier(standing: Standing) -> Held:
            held = self._holders.of_standing(call.layer, standing, excluded)
            costs.update(self._holders.costs(held))
            return held

        return choose_in_tiers(experts, map(tier, standings), costs)


@dataclass(slots=True)
class _Request:
    """Some experts of a call at one holder."""

    call: LayerCall
    peer: PeerId
    experts: tuple[ExpertId, ...]
    tried: tuple[PeerId, ...]
    """Who has been asked for these experts, `peer` included."""
    patience: "_Patience"
    started: float
    """Seconds of the clock."""
    answer: asyncio.Future[PartialSum]
    is_hedged: bool = False
    """Others were asked before the holder could be called stalled."""


@dataclass(frozen=True, slots=True)
class _Patience:
    """How long a holder is waited for, as it was when the request was sent."""

    health: Health
    hedge_after_s: float
    rto_s: float
    num_in_flight: int
    """Requests to it, this one included."""
    num_answered: int

    @property
    def first_s(self) -> float:
        """Before this nobody looks."""
        return min(self.hedge_after_s, self.rto_s)


async def _alone(answer: asyncio.Future[PartialSum]) -> list[PartialSum]:
    """One holder's answer as all that there is."""
    return [await answer]


async def _until_late(patience: _Patience) -> None:
    """Wait until a request is late; it was sent `patience.first_s` ago. While a holder answers those that were sent
    before it, the time begins anew with each (RFC 6298 §5.3): chunks of a prompt stand in line behind one another on a
    slow link."""
    num_answered = patience.num_answered
    for _ in range(patience.num_in_flight - 1):
        if patience.health.num_answered == num_answered:
            return
        num_answered = patience.health.num_answered
        await asyncio.sleep(patience.first_s)


async def _all(parts: Sequence[Coroutine[None, None, list[PartialSum]]]) -> list[list[PartialSum]]:
    """Run the parts of a layer together; the first error cancels the others and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(part) for part in parts]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _now() -> float:
    return asyncio.get_running_loop().time()
