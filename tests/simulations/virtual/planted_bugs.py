"""Mistakes that one could make in client and node, each of which the simulator must find."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from shoal.client.engine import passes
from shoal.client.engine.sequence import Answering
from shoal.client.routing import dispatch, exchange, hedge
from shoal.client.routing.choose import Plan, choose_in_tiers
from shoal.client.routing.combine import PartialSum, combine
from shoal.client.routing.dispatch import SwarmExperts
from shoal.client.routing.health import Health, Standing
from shoal.client.routing.hedge import Budget
from shoal.client.routing.holders import Holder, Holders
from shoal.client.trunk.kv_cache import LatentCache
from shoal.client.trunk.wavefront import Turn
from shoal.experts.pieces.store import PieceStore
from shoal.node.announcer import Claim
from shoal.node.holdings.healer import Healer
from shoal.node.holdings.keeper import Keeper
from shoal.node.serving import batcher, cold, server
from shoal.node.serving.admission import Admission, Demand
from shoal.node.serving.batch_rows import Call, merge, split
from shoal.node.serving.batcher import Batcher, Computed, Job
from shoal.node.serving.cold import ColdExperts
from shoal.protocol.errors import DiskFull
from shoal.protocol.net.client_session import ClientSession
from shoal.protocol.tensors import read_partial_body
from shoal.simulations.virtual.faults import Kind
from shoal.simulations.virtual.run import LONG_PROMPT, Setup


@dataclass(frozen=True)
class PlantedBug:
    """One mistake. `plant` puts it into the running program."""

    name: str
    plant: Callable[[pytest.MonkeyPatch], None]
    shows_under: Callable[[Setup], bool] = lambda setup: True
    """Seeds under which it can show at all; the others need not be run."""
    needs_shared_calls: bool = False
    """Whether it shows only where the C++ kernels were built: the reference's rows depend on their company."""


def _answers_are_wrong(setup: Setup) -> bool:
    return any(fault.kind is Kind.BAD_REPLY for fault in setup.plan)


def _three_clients_meet(setup: Setup) -> bool:
    return setup.num_clients > 2 and len(setup.prompts) > 2


def _a_disk_is_full(setup: Setup) -> bool:
    return bool(setup.capacities) and any(fault.kind is Kind.FULL_DISK for fault in setup.plan)


def _no_retry(patch: pytest.MonkeyPatch) -> None:
    async def retry(self: SwarmExperts, request: object, failure: Exception) -> None:
        raise failure

    patch.setattr(SwarmExperts, "_retry", retry)


def _sum_twice(patch: pytest.MonkeyPatch) -> None:
    def twice(partials: Iterable[PartialSum], num_tokens: int, hidden: int) -> torch.Tensor:
        known = list(partials)
        return combine([*known, known[0]] if len(known) > 2 else known, num_tokens, hidden)

    patch.setattr(dispatch, "combine", twice)


def _no_deadline(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ClientSession, "_expire", lambda self, request_id: None)
    patch.setattr(Health, "rto_s", lambda self, macs: 1e6)


def _masked_experts(patch: pytest.MonkeyPatch) -> None:
    def masked(*args: Any) -> Plan:
        return Plan(choose_in_tiers(*args).shares, ())

    patch.setattr(dispatch, "choose_in_tiers", masked)


def _any_number_is_good(patch: pytest.MonkeyPatch) -> None:
    def unchecked(message: Any, body: Any) -> torch.Tensor:
        data = torch.frombuffer(bytearray(body), dtype=torch.float32)
        return data.reshape(message.num_tokens, message.hidden)

    patch.setattr(exchange, "read_partial_body", unchecked)


def _any_shape_is_good(patch: pytest.MonkeyPatch) -> None:
    def cut(message: Any, body: Any) -> torch.Tensor:
        return read_partial_body(message, body)[:1]

    patch.setattr(exchange, "read_partial_body", cut)


def _any_request_hash_is_good(patch: pytest.MonkeyPatch) -> None:
    original = ClientSession._settle

    def settle(self: ClientSession, pending: Any, frame: Any) -> None:
        digest = getattr(frame.message, "request_hash", None)
        if digest is not None:
            pending.request_hash = digest
        original(self, pending, frame)

    patch.setattr(ClientSession, "_settle", settle)


def _losers_run_on(patch: pytest.MonkeyPatch) -> None:
    async def forget(*answers: asyncio.Future[object]) -> None:
        await asyncio.sleep(0)

    patch.setattr(hedge, "end", forget)
    patch.setattr(dispatch, "end", forget)


def _hedges_without_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Budget, "take", lambda self: True)
    patch.setattr(Health, "hedge_after_s", lambda self, macs: 0.001)


def _busy_is_fatal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Holders, "busy_for_s", lambda self, peers: 1e9)


def _no_reconnect(patch: pytest.MonkeyPatch) -> None:
    async def nothing(self: Holders, holder: Holder, limit: asyncio.Semaphore) -> None:
        if getattr(holder, "channel", None) is None and not getattr(self, "_was_started", False):
            await original(self, holder, limit)

    original = Holders._connect
    start = Holders.start

    async def once(self: Holders) -> None:
        await start(self)
        self._was_started = True  # type: ignore[attr-defined]

    patch.setattr(Holders, "_connect", nothing)
    patch.setattr(Holders, "start", once)


def _backlog_leaks(patch: pytest.MonkeyPatch) -> None:
    original = Admission.admit

    def leaking(self: Admission, demand: Demand) -> Any:
        self._macs += 1
        return original(self, demand)

    patch.setattr(Admission, "admit", leaking)


def _the_failed_holder_is_asked_again(patch: pytest.MonkeyPatch) -> None:
    def same(self: SwarmExperts, request: Any, standings: Any) -> Plan:
        return Plan({request.peer: request.experts}, ())

    patch.setattr(SwarmExperts, "_elsewhere", same)


def _doubt_is_for_ever(patch: pytest.MonkeyPatch) -> None:
    def standing(self: Health, now: float) -> Standing:
        return Standing.BANNED if self.failures else Standing.USABLE

    patch.setattr(Health, "standing", standing)


def _shared_answers_mixed_up(patch: pytest.MonkeyPatch) -> None:
    def mixed(result: torch.Tensor, calls: Any) -> list[torch.Tensor]:
        # of the right shape: one of another length would be refused, sent again, and never seen
        return split(result.roll(1, 0) if len(calls) > 1 else result, calls)

    patch.setattr(batcher, "split", mixed)


def _shared_rows_of_one(patch: pytest.MonkeyPatch) -> None:
    original = merge

    def merged(calls: Any) -> Call:
        call = original(calls)
        rows = call.rows
        return replace(call, rows=replace(rows, row_idx=rows.row_idx % calls[0].num_tokens))

    patch.setattr(batcher, "merge", merged)


def _what_nobody_waits_for_is_computed(patch: pytest.MonkeyPatch) -> None:
    original = Batcher.run

    async def run(self: Batcher, job: Job) -> Computed:
        if not self._is_busy:
            return await original(self, job)
        job.answer = asyncio.get_running_loop().create_future()
        self._waiting.push(job.peer, job.call.num_pairs, job)
        return await job.answer  # and stays in the queue when its client leaves

    patch.setattr(Batcher, "run", run)
    patch.setattr(Batcher, "_is_wanted", lambda self, job, now: True)


def _a_full_disk_ends_the_watch(patch: pytest.MonkeyPatch) -> None:
    async def run(self: Healer) -> None:
        while True:
            await asyncio.sleep(self._settings.look_s * (0.5 + self._place.draw()))
            await self.look()

    patch.setattr(Healer, "run", run)


def _half_a_piece_stays(patch: pytest.MonkeyPatch) -> None:
    def put(self: PieceStore, digest: bytes, data: bytearray) -> None:
        try:
            self._write(digest.hex(), data)
        except OSError as error:
            raise DiskFull("no room") from error

    patch.setattr(PieceStore, "put", put)


def _what_is_coming_is_announced_as_held(patch: pytest.MonkeyPatch) -> None:
    original = Keeper._claim

    def claim(self: Keeper, coming: Any, dropped: Any) -> Claim:
        made = original(self, coming, dropped)
        layers = {*made.holding, *coming}
        return replace(made, holding={e: (*made.holding.get(e, ()), *coming.get(e, ())) for e in layers})

    patch.setattr(Keeper, "_claim", claim)
    patch.setattr(Keeper, "forget_plans", lambda self: None)


def _has_an_anchor(setup: Setup) -> bool:
    return bool(setup.anchors)


def _a_late_holder_is_reason_for_an_anchor(patch: pytest.MonkeyPatch) -> None:
    original = SwarmExperts._elsewhere

    def elsewhere(self: SwarmExperts, request: Any, standings: Any) -> Plan:
        return self._ask_disks(request.call, original(self, request, standings), (), request.tried)

    patch.setattr(SwarmExperts, "_elsewhere", elsewhere)


def _no_last_resort(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SwarmExperts, "_ask_disks", lambda self, call, plan, hoped_for, excluded=(): plan)


def _an_anchor_forgets_what_did_not_fit(patch: pytest.MonkeyPatch) -> None:
    original = cold.compute

    def first_part(backend: Any, resident: Any, experts: ColdExperts, call: Call) -> torch.Tensor:
        capacity = experts.latest.capacity
        fits = call.rows.offsets[: capacity + 1]
        rows = replace(call.rows, row_idx=call.rows.row_idx[: fits[-1]], offsets=fits)
        return original(backend, resident, experts, replace(call, experts=call.experts[:capacity], rows=rows))

    patch.setattr(server, "compute", first_part)


def _drafts_are_sometimes_wrong(setup: Setup) -> bool:
    return setup.drafting is not None and setup.drafting.luck < 1


def _a_prompt_is_long(setup: Setup) -> bool:
    return LONG_PROMPT in setup.prompts


def _a_draft_is_believed(patch: pytest.MonkeyPatch) -> None:
    original = passes._choose

    def choose(sequence: Answering, logits: torch.Tensor, drafts: list[int]) -> passes.Outcome:
        outcome = original(sequence, logits, drafts)
        if isinstance(outcome, passes.Chosen):
            believed = [replace(outcome.sampled[0], token_id=draft) for draft in drafts]
            return replace(outcome, sampled=[*believed, outcome.sampled[-1]])
        return outcome

    patch.setattr(passes, "_choose", choose)


def _wrong_drafts_stay_in_the_cache(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LatentCache, "truncate", lambda self, length: None)


def _a_chunk_does_not_wait_for_the_one_before(patch: pytest.MonkeyPatch) -> None:
    async def begin(self: Turn) -> None:
        self.is_on_trunk = True

    patch.setattr(Turn, "begin", begin)


PLANTED_BUGS = [
    PlantedBug("a failed request is not tried again", _no_retry),
    PlantedBug("a partial sum is added twice", _sum_twice),
    PlantedBug("nobody looks at the time", _no_deadline),
    PlantedBug("experts that nobody holds are left out", _masked_experts),
    PlantedBug("NaN is taken for an answer", _any_number_is_good, _answers_are_wrong),
    PlantedBug("an answer of too few rows is taken", _any_shape_is_good, _answers_are_wrong),
    PlantedBug("an answer to another request is taken", _any_request_hash_is_good, _answers_are_wrong),
    PlantedBug("the loser of a race runs on", _losers_run_on),
    PlantedBug("hedges have no budget", _hedges_without_end),
    PlantedBug("a busy holder is never asked again", _busy_is_fatal),
    PlantedBug("a broken connection is not opened again", _no_reconnect),
    PlantedBug("admitted work is not given back", _backlog_leaks),
    PlantedBug("the answers of a shared kernel call are mixed up", _shared_answers_mixed_up, _three_clients_meet, True),
    PlantedBug("the rows of a shared kernel call are one request's", _shared_rows_of_one, _three_clients_meet, True),
    PlantedBug("a request that nobody waits for is computed", _what_nobody_waits_for_is_computed),
    PlantedBug("a full disk ends a node's watch over its swarm", _a_full_disk_ends_the_watch, _a_disk_is_full),
    PlantedBug("half a piece stays on a full disk", _half_a_piece_stays, _a_disk_is_full),
    PlantedBug("what is coming is announced as held", _what_is_coming_is_announced_as_held),
    PlantedBug(
        "a late holder is reason enough to ask an anchor", _a_late_holder_is_reason_for_an_anchor, _has_an_anchor
    ),
    PlantedBug("anchors are never asked", _no_last_resort, _has_an_anchor),
    PlantedBug("an anchor forgets experts that do not fit", _an_anchor_forgets_what_did_not_fit, _has_an_anchor),
    PlantedBug("the holder that failed is asked again instead of others", _the_failed_holder_is_asked_again),
    PlantedBug("a holder that failed once is never asked again", _doubt_is_for_ever),
    PlantedBug("a draft is believed", _a_draft_is_believed, _drafts_are_sometimes_wrong),
    PlantedBug("rows of wrong drafts stay in the cache", _wrong_drafts_stay_in_the_cache, _drafts_are_sometimes_wrong),
    PlantedBug(
        "a chunk does not wait for the one before it", _a_chunk_does_not_wait_for_the_one_before, _a_prompt_is_long
    ),
]
