"""Where the time of one exchange goes: a layer's routed experts at two holders, client and holders profiled together.

    shoal bench wire --budget

The real dispatch of the client asks two real holders, each a process, for four experts each; one row of 14 KiB goes to
both and 28 KiB come back. The way of the slower of the two answers is cut at moments that the programs tell
(`marks.py`), so that the parts add up to the whole. Every other round runs without marks: their cost is said, and the
whole is taken from there. Ours is what is neither the experts' kernel nor waiting for a processor.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch

from shoal.client.routing import exchange as client_exchange
from shoal.client.routing.dispatch import SwarmExperts
from shoal.client.routing.holders import Holder, Holders
from shoal.client.routing.model_id import ModelId
from shoal.experts.manifest import Manifest
from shoal.protocol.events import DispatchSent, Event, ReplyReceived
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
    Used,
    experts_of,
    node_identity,
    used,
)
from shoal.simulations.bench.machine import describe_machine, git_commit
from shoal.simulations.bench.marks import Spot, marking
from shoal.simulations.bench.wire import CLIENT_SEED, CONNECT_TIMEOUT_S, KINDS, NUM_WARM_UP

CHANNELS = ("direct", "libp2p")
NUM_HOLDERS = 2
NUM_ROUNDS = 4
"""Each with marks and without, in turn."""

SPOTS = (
    Spot(LaneStream, "write", before="write", after="written"),
    Spot(FrameDecoder, "feed", before="bytes"),
    Spot(ClientSession, "_on_answer", before="frame"),
    Spot(client_exchange, "read_partial_body", before="decode", after="decoded"),
)

PARTS = (
    ("client", "group, choose holders, start tasks, cut rows, header, hash"),
    ("client", "frame, TLS encryption, send (and of the other holder's before it)"),
    ("between", "sockets, wake-up of the holder, TLS decryption"),
    ("node", "check prefix and header"),
    ("node", "hash, admission to the session, task starts"),
    ("node", "check against what is held, admission, decode rows"),
    ("node", "to the worker thread"),
    ("kernel", "the experts"),
    ("node", "back to the loop"),
    ("node", "count, check finite, encode, header"),
    ("node", "frame, TLS encryption, send"),
    ("between", "sockets, wake-up of the client, TLS decryption"),
    ("client", "check prefix and header"),
    ("client", "to the task that waits"),
    ("client", "decode, check finite"),
    ("client", "health, events, end tasks, sum"),
)
KERNEL = 7
"""Which of the parts is the experts' arithmetic."""


@dataclass(frozen=True, slots=True)
class Taken:
    """One exchange. `parts_s`: empty if it was not marked."""

    total_s: float
    parts_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Processes:
    """What client and holders have used for an exchange, on average; microseconds, and wake-ups."""

    client: Used
    nodes: Used


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
        marked, plain, spent = list[Taken](), list[Taken](), list[Processes]()
        for _ in range(NUM_ROUNDS):
            marked += await _marked_round(experts, nodes, events, num_exchanges)
            taken, processes = await _plain_round(experts, nodes, events, num_exchanges)
            plain += taken
            spent.append(processes)
    return _report(kind, marked, plain, spent)


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
    before = [node.ask(is_marking=False)[0] for node in nodes]
    own_before = used()
    found = await _run(experts, events, num_exchanges)
    own = used().since(own_before)
    others = [node.ask(is_marking=False)[0].since(used_before) for node, used_before in zip(nodes, before, strict=True)]
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
    experts: SwarmExperts, nodes: Sequence[BudgetNode], events: list[Event], num_exchanges: int
) -> list[Taken]:
    for node in nodes:
        node.ask(is_marking=True)
    with marking(SPOTS) as marks:
        found = await _run(experts, events, num_exchanges)
    told = {node_identity(node.place).peer: node.ask(is_marking=False)[1] for node in nodes}
    own, places = marks.found, dict.fromkeys(told, 0)
    at, taken = 0, list[Taken]()
    for started, ended, happened in found:
        ours, at = _until(own, at, ended)
        theirs: dict[PeerId, list[tuple[str, float]]] = {}
        for peer, marks_of_peer in told.items():
            theirs[peer], places[peer] = _until(marks_of_peer, places[peer], ended)
        if (parts := _cut(started, ended, happened, ours, theirs)) is not None:
            taken.append(Taken(ended - started, parts))
    return taken


def _until(marks: Sequence[tuple[str, float]], at: int, ended: float) -> tuple[list[tuple[str, float]], int]:
    """The marks from `at` on that were told before a moment, and where the next begin."""
    end = at
    while end < len(marks) and marks[end][1] <= ended:
        end += 1
    return list(marks[at:end]), end


def _cut(
    started: float,
    ended: float,
    happened: Sequence[Event],
    ours: Sequence[tuple[str, float]],
    theirs: dict[PeerId, list[tuple[str, float]]],
) -> tuple[float, ...] | None:
    """The parts of one exchange, on the way of its last answer; None if it was not an ordinary one (a request sent
    again)."""
    asked = [event.peer for event in happened if isinstance(event, DispatchSent)]
    answered = [event.peer for event in happened if isinstance(event, ReplyReceived)]
    names = [name for name, _ in ours]
    if len(asked) != NUM_HOLDERS or names.count("frame") != NUM_HOLDERS or names.count("decode") != NUM_HOLDERS:
        return None
    last = answered[-1]
    node, write = dict(theirs[last]), [at for name, at in ours if name == "write"]
    written = [at for name, at in ours if name == "written"]
    client = dict(ours)  # of each name the last
    events = [at for at in (client.get("bytes"), client.get("frame"), client.get("decode")) if at is not None]
    of_node = [node.get(f"node {name}") for name in NODE_MOMENTS]
    if len(events) != 3 or None in of_node or len(write) <= asked.index(last):
        return None
    moments = [started, write[asked.index(last)], written[asked.index(last)], *of_node, *events]
    moments += [client["decoded"], ended]
    return tuple(_steps(moments))


NODE_MOMENTS = ("bytes", "frame", "handler", "admitted", "kernel", "computed", "back", "write", "written")


def _steps(moments: Sequence[float | None]) -> list[float]:
    """Differences of moments; one that came before the one before it (two processors) counts as that."""
    at = list[float]()
    for moment in moments:
        at.append(max(moment or 0.0, at[-1]) if at else moment or 0.0)
    return [later - earlier for earlier, later in pairwise(at)]


def _report(
    kind: str, marked: Sequence[Taken], plain: Sequence[Taken], spent: Sequence[Processes]
) -> dict[str, object]:
    parts = list(zip(*(taken.parts_s for taken in marked), strict=True))
    kernel_s = statistics.median(parts[KERNEL])
    waited_us = statistics.median([each.client.waited_s + each.nodes.waited_s for each in spent])
    return {
        "channel": kind,
        "num_exchanges": len(plain),
        "total": _spread([taken.total_s for taken in plain]),
        "total_marked": _spread([taken.total_s for taken in marked]),
        "ours": _spread([taken.total_s - kernel_s for taken in plain]),
        "run_queue_us": round(waited_us, 1),
        "parts": [
            {"where": where, "what": what, **_spread(times)} for (where, what), times in zip(PARTS, parts, strict=True)
        ],
        "used": {side: _rounded([getattr(each, side) for each in spent]) for side in ("client", "nodes")},
    }


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
        lines += ["", f"{found['channel']}, {found['num_exchanges']} exchanges, us{'':42} {'p50':>8} {'p99':>8}"]
        lines += [_line(part["where"], part["what"], part) for part in found["parts"]]
        lines.append(_line("whole", "with the moments told", found["total_marked"]))
        lines.append(_line("whole", "without", found["total"]))
        lines.append(_line("ours", "whole, less the median of the kernel", found["ours"]))
        for side, spent in found["used"].items():
            lines.append(f"  {side:8}" + ", ".join(f"{name} {value}" for name, value in spent.items()))
    return "\n".join(lines)


def _line(where: str, what: str, spread: dict[str, float]) -> str:
    return f"  {where:8}{what:66} {spread['p50_us']:8.1f} {spread['p99_us']:8.1f}"
