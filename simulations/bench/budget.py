"""Where the time of one exchange goes: a layer's routed experts at two holders, client and holders profiled together.

    shoal bench wire --budget

The real dispatch of the client asks two real holders, each a process, for four experts each; one row of 14 KiB goes to
both and 28 KiB come back. The way of the slower of the two answers is cut at moments that the programs tell
(`marks.py`), so that the parts add up to the whole. Every other round runs without marks: their cost is said, and the
whole is taken from there. Ours is said in two ways: what is not the experts' kernel; and of that, where the operating
system can be traced (`os_trace.py`), what is neither its own time nor waiting for a processor.
"""

import asyncio
import os
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil
import torch

from shoal.client.routing import exchange as client_exchange
from shoal.client.routing.dispatch import SwarmExperts
from shoal.client.routing.holders import Holder, Holders
from shoal.client.routing.model_id import ModelId
from shoal.experts.manifest import Manifest
from shoal.protocol.events import Event
from shoal.protocol.frames import FrameDecoder
from shoal.protocol.identity import Identity
from shoal.protocol.ids import PeerId
from shoal.protocol.messages import Rounding
from shoal.protocol.net.channel import Connector
from shoal.protocol.net.client_session import ClientSession
from shoal.protocol.net.lane import LaneStream
from shoal.protocol.net.memory_directory import MemoryDirectory
from shoal.protocol.record_book import RecordBook
from shoal.simulations.bench.budget_node import (
    EXPERTS_OF_A_NODE,
    LAYER,
    MODEL_ROOT,
    SPEC,
    WEIGHT_FORMAT,
    BudgetNode,
    Told,
    Used,
    experts_of,
    node_identity,
    used,
)
from shoal.simulations.bench.budget_parts import (
    KERNEL,
    NUM_HOLDERS,
    PARTS,
    Cut,
    Mark,
    Spent,
    Where,
    cut,
    spent_on_parts,
)
from shoal.simulations.bench.machine import describe_machine, git_commit
from shoal.simulations.bench.marks import Spot, marking
from shoal.simulations.bench.os_trace import State, Tracer, ran_and_waited_s, threads_of, tracing
from shoal.simulations.bench.wire import CLIENT_SEED, CONNECT_TIMEOUT_S, KINDS, NUM_WARM_UP

CHANNELS = ("direct", "libp2p")
NUM_ROUNDS = 4
"""Each with marks and without, in turn."""

SPOTS = (
    Spot(LaneStream, "write", before="write", after="written"),
    Spot(FrameDecoder, "feed", before="bytes"),
    Spot(ClientSession, "_on_answer", before="frame"),
    Spot(client_exchange, "read_partial_body", before="decode", after="decoded"),
)


@dataclass(frozen=True, slots=True)
class Taken:
    """One exchange. parts_s: empty if it was not marked; spent: if it was not traced."""

    total_s: float
    parts_s: tuple[float, ...] = ()
    spent: tuple[Spent, ...] = ()


@dataclass(frozen=True, slots=True)
class Processes:
    """What client and holders have used for an exchange, on average; microseconds, and wake-ups."""

    client: Used
    nodes: Used


@dataclass(frozen=True, slots=True)
class Check:
    """What a trace and the kernel's own sums say of the same threads in the same time: seconds."""

    traced_s: float
    summed_s: float


@dataclass(slots=True)
class Rounds:
    """What was measured so far."""

    marked: list[Taken] = field(default_factory=list)
    plain: list[Taken] = field(default_factory=list)
    spent: list[Processes] = field(default_factory=list)
    waits: list[Check] = field(default_factory=list)
    """Of each traced round: waiting for a processor."""
    not_traced: str = ""
    """Why the operating system can not be traced here; empty if it is."""


class FixedHolders(Holders):
    """Two holders that everybody knows: no directory, no challenge."""

    async def connect(self, connector: Connector, addresses: Sequence[tuple[str, ...]]) -> None:
        """Open a channel to each."""
        for place, where in enumerate(addresses):
            peer = node_identity(place).peer
            channel = await connector.connect(peer, where, CONNECT_TIMEOUT_S)
            self._holders[peer] = Holder(peer, where, {LAYER: frozenset(experts_of(place))}, channel=channel)


def model_id() -> ModelId:
    """What requests say of the model."""
    return ModelId(
        MODEL_ROOT, WEIGHT_FORMAT, Rounding.BF16, SPEC.hidden, NUM_HOLDERS * EXPERTS_OF_A_NODE, SPEC.macs_per_row, 1
    )


async def bench_budget(kinds: Sequence[str], num_exchanges: int) -> dict[str, object]:
    """The budget of each kind of channel; one JSON object. num_exchanges: in all rounds together, with marks; as many
    again without.

    Raises:
        ConnectFailed: a holder did not come up.
    """
    found = [await _budget_of(kind, max(1, num_exchanges // NUM_ROUNDS)) for kind in kinds]
    return {"machine": describe_machine(), "commit": git_commit(), "holders": NUM_HOLDERS, "channels": found}


async def _budget_of(kind: str, num_exchanges: int) -> dict[str, object]:
    events: list[Event] = []
    async with AsyncExitStack() as stack:
        nodes = [stack.enter_context(BudgetNode(kind, place)) for place in range(NUM_HOLDERS)]
        addresses = [await asyncio.to_thread(node.addresses) for node in nodes]
        identity = Identity.from_seed(CLIENT_SEED)
        connector = await stack.enter_async_context(KINDS[kind].connector(identity))
        holders = _holders(identity, connector, events)
        stack.push_async_callback(holders.aclose)
        await holders.connect(connector, addresses)
        experts = SwarmExperts(holders, model_id(), events.append, time.perf_counter, lambda: 0.5)
        await _run(experts, events, NUM_WARM_UP)
        rounds = Rounds()
        tracer: Tracer | None = None
        try:
            tracer = stack.enter_context(tracing())
        except OSError as error:
            rounds.not_traced = f"{error.strerror}: {error.filename}"
        for _ in range(NUM_ROUNDS):
            await _marked_round(experts, nodes, events, num_exchanges, rounds, tracer)
            taken, processes = await _plain_round(experts, nodes, events, num_exchanges)
            rounds.plain += taken
            rounds.spent.append(processes)
    return _report(kind, rounds)


def _holders(identity: Identity, connector: Connector, events: list[Event]) -> FixedHolders:
    directory = MemoryDirectory(RecordBook(), identity, time.time)
    manifest = Manifest("deepseek_v3", WEIGHT_FORMAT, bytes(32), {}, {LAYER: (bytes(32),)}, {})
    return FixedHolders(
        directory, connector, manifest, model_id(), [LAYER], events.append, lambda ids: ids[0], time.perf_counter,
        lambda: 0.5,
    )  # fmt: skip


async def _run(
    experts: SwarmExperts, events: list[Event], num_exchanges: int
) -> list[tuple[float, float, list[Event]]]:
    """Exchanges one after another: beginning, end, what happened."""
    x = torch.randn(1, SPEC.hidden, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    topk_idx = torch.arange(NUM_HOLDERS * EXPERTS_OF_A_NODE).unsqueeze(0)
    topk_weights = torch.full(topk_idx.shape, 1 / topk_idx.shape[1])
    found: list[tuple[float, float, list[Event]]] = []
    with torch.inference_mode():
        for _ in range(num_exchanges):
            events.clear()
            started = time.perf_counter()
            await experts(LAYER, x, topk_idx, topk_weights)
            found.append((started, time.perf_counter(), list(events)))
    return found


async def _plain_round(
    experts: SwarmExperts, nodes: Sequence[BudgetNode], events: list[Event], num_exchanges: int
) -> tuple[list[Taken], Processes]:
    before = [node.ask(is_marking=False).used for node in nodes]
    own_before = used()
    found = await _run(experts, events, num_exchanges)
    own = used().since(own_before)
    others = [
        node.ask(is_marking=False).used.since(used_before) for node, used_before in zip(nodes, before, strict=True)
    ]
    return [Taken(ended - started) for started, ended, _ in found], Processes(
        _for_one([own], num_exchanges), _for_one(others, num_exchanges)
    )


def _for_one(processes: Sequence[Used], num_exchanges: int) -> Used:
    """Microseconds and wake-ups for an exchange, of all these processes together."""
    return Used(
        *(
            sum(getattr(each, name) for each in processes) / num_exchanges * (1 if name == "num_switches" else 1e6)
            for name in Used.__slots__
        )
    )


async def _marked_round(
    experts: SwarmExperts,
    nodes: Sequence[BudgetNode],
    events: list[Event],
    num_exchanges: int,
    rounds: Rounds,
    tracer: Tracer | None,
) -> None:
    for node in nodes:
        node.ask(is_marking=True)
    pids = [os.getpid(), *(node.pid for node in nodes)]
    tids = threads_of([*pids, *_p2pds(pids)])
    waited_s = ran_and_waited_s(tids)[1]
    if tracer is not None:
        tracer.start(tids)
    started = time.perf_counter()
    with marking(SPOTS) as marks:
        found = await _run(experts, events, num_exchanges)
    times = tracer.stop() if tracer is not None else None
    summed_s, ended = ran_and_waited_s(tids)[1] - waited_s, time.perf_counter()
    told = [node.ask(is_marking=False) for node in nodes]
    threads = {node_identity(node.place).peer: _threads(node, each) for node, each in zip(nodes, told, strict=True)}
    moments = {node_identity(node.place).peer: each.marks for node, each in zip(nodes, told, strict=True)}
    for each in _cuts(found, marks.found, moments):
        spent = spent_on_parts(each, times, threads[each.slowest].__getitem__) if times is not None else ()
        rounds.marked.append(Taken(each.moments[-1] - each.moments[0], each.parts_s, tuple(spent)))
    if times is not None:
        traced_s = sum(times.spent([tid], started, ended)[State.WAITING] for tid in tids)
        rounds.waits.append(Check(traced_s, summed_s))


def _p2pds(pids: Sequence[int]) -> list[int]:
    """The processes that carry libp2p's streams of these."""
    children = [child for pid in pids for child in psutil.Process(pid).children()]
    return [child.pid for child in children if "p2pd" in child.name()]


def _threads(node: BudgetNode, told: Told) -> dict[Where, list[int]]:
    """What an exchange with a node passes through; first the thread, then those of its p2pd."""
    return {
        Where.CLIENT: [os.getpid(), *threads_of(_p2pds([os.getpid()]))],
        Where.LOOP: [node.pid, *threads_of(_p2pds([node.pid]))],
        Where.WORKER: [told.worker_tid],
    }


def _cuts(
    found: Sequence[tuple[float, float, list[Event]]], own: Sequence[Mark], theirs: dict[PeerId, list[Mark]]
) -> Iterator[Cut]:
    """All ordinary exchanges of a round."""
    at, places = 0, dict.fromkeys(theirs, 0)
    for started, ended, happened in found:
        ours, at = _until(own, at, ended)
        of_nodes: dict[PeerId, list[Mark]] = {}
        for peer, marks_of_peer in theirs.items():
            of_nodes[peer], places[peer] = _until(marks_of_peer, places[peer], ended)
        if (one := cut(started, ended, happened, ours, of_nodes)) is not None:
            yield one


def _until(marks: Sequence[Mark], at: int, ended: float) -> tuple[list[Mark], int]:
    """The marks from `at` on that were told before a moment, and where the next begin."""
    end = at
    while end < len(marks) and marks[end][1] <= ended:
        end += 1
    return list(marks[at:end]), end


def _report(kind: str, rounds: Rounds) -> dict[str, object]:
    marked, plain = rounds.marked, rounds.plain
    parts = list(zip(*(taken.parts_s for taken in marked), strict=True))
    kernel_s = statistics.median(parts[KERNEL])
    return {
        "channel": kind,
        "num_exchanges": len(plain),
        "total": _spread([taken.total_s for taken in plain]),
        "total_marked": _spread([taken.total_s for taken in marked]),
        "ours": _spread([taken.total_s - kernel_s for taken in plain]),
        "ours_marked": _spread([taken.total_s - taken.parts_s[KERNEL] for taken in marked]),
        "not_traced": rounds.not_traced,
        "parts": [
            {"where": part.side, "what": part.what, **_spread(times)} for part, times in zip(PARTS, parts, strict=True)
        ],
        "used": {side: _rounded([getattr(each, side) for each in rounds.spent]) for side in ("client", "nodes")},
        **(_traced(rounds) if rounds.waits else {}),
    }


def _traced(rounds: Rounds) -> dict[str, object]:
    """What the operating system's part of the marked exchanges was."""
    spent = [taken.spent for taken in rounds.marked]
    sums = [[_sum(each for i, each in enumerate(one) if i != KERNEL)] for one in spent]
    return {
        "ours_less_os": _spread([one.ours_s for (one,) in sums]),
        "system": _spread([one.system_s for (one,) in sums]),
        "waiting": _spread([one.waiting_s for (one,) in sums]),
        "parts_spent": [
            {name: round(1e6 * statistics.median([getattr(one, f"{name}_s") for one in part]), 1) for name in SPENT}
            for part in zip(*spent, strict=True)
        ],
        "waits_of_all_threads": {
            "traced_us": round(1e6 * sum(each.traced_s for each in rounds.waits) / len(spent), 1),
            "schedstat_us": round(1e6 * sum(each.summed_s for each in rounds.waits) / len(spent), 1),
        },
    }


def _sum(parts: Iterable[Spent]) -> Spent:
    all_parts = list(parts)
    return Spent(*(sum(getattr(part, f"{name}_s") for part in all_parts) for name in SPENT))


SPENT = ("ours", "system", "waiting")


def _spread(times_s: Sequence[float]) -> dict[str, float]:
    """Microseconds."""
    p99 = statistics.quantiles(times_s, n=100, method="inclusive")[98]
    return {"p50_us": round(1e6 * statistics.median(times_s), 1), "p99_us": round(1e6 * p99, 1)}


def _rounded(rounds: Sequence[Used]) -> dict[str, float]:
    """Medians over the rounds."""
    middle = Used(*(statistics.median([getattr(each, name) for each in rounds]) for name in Used.__slots__))
    names = {"user_s": "user_us", "system_s": "system_us", "waited_s": "run_queue_us", "num_switches": "wake_ups"}
    return {names[name]: round(value, 1) for name, value in asdict(middle).items()}


def table(result: dict[str, object]) -> str:
    """The result of `bench_budget` for people."""
    channels = result["channels"]
    if not isinstance(channels, list):
        raise TypeError("not a result of bench_budget")
    lines = [f"{result['machine']}, commit {result['commit']}; a row of 14 KiB to each of {result['holders']} holders"]
    for found in channels:
        names = "".join(f"{name:>9}" for name in SPENT) if "parts_spent" in found else ""
        lines += ["", f"{found['channel']}, {found['num_exchanges']} exchanges, us{'':42} {'p50':>8} {'p99':>8}{names}"]
        for i, part in enumerate(found["parts"]):
            spent = found["parts_spent"][i] if names else {}
            lines.append(_line(part["where"], part["what"], part) + "".join(f"{us:9.1f}" for us in spent.values()))
        lines.append(_line("whole", "with the moments told" + (", and traced" if names else ""), found["total_marked"]))
        lines.append(_line("whole", "without", found["total"]))
        lines.append(_line("ours", "whole, less the median of the experts' kernel", found["ours"]))
        lines += _traced_lines(found) if names else [f"  not traced: {found['not_traced']}"]
        for side, used_by in found["used"].items():
            lines.append(f"  {side:8}" + ", ".join(f"{name} {value}" for name, value in used_by.items()))
    return "\n".join(lines)


def _traced_lines(found: dict[str, Any]) -> list[str]:
    waits = found["waits_of_all_threads"]
    return [
        _line("ours", "the same of the traced ones, each less its own kernel", found["ours_marked"]),
        _line("  of it", "the operating system", found["system"]),
        _line("  of it", "waiting for a processor", found["waiting"]),
        _line("ours", "less experts' kernel, operating system and waiting", found["ours_less_os"]),
        f"  check: waiting of all threads, an exchange: {waits['traced_us']} us traced, {waits['schedstat_us']} us by"
        " the kernel's sums",
    ]


def _line(where: str, what: str, spread: dict[str, float]) -> str:
    return f"  {where:8}{what:66} {spread['p50_us']:8.1f} {spread['p99_us']:8.1f}"
