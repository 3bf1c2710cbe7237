"""The bad days: each a coroutine that harms a swarm while it answers, and the promise that must hold meanwhile.

Which tokens met a fault, and what they cost, the arena's chronicle knows; `run.py` judges. Knows no output.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from shoal.protocol.errors import ShoalError
from shoal.protocol.ids import ExpertId, PeerId
from shoal.protocol.limits import RECORD_TTL_S
from shoal.simulations.arena import Arena
from shoal.simulations.chronicle import Fault
from shoal.simulations.churn import count_of
from shoal.simulations.local import LocalNode, NodeFailed
from shoal.simulations.node_process import DISK, Place

KILLED, FROZEN = "0.3", "33%"
PARTITION_S = 60.0
AGAIN_S = 120.0
"""How long a holder that was away may take until it is used again before that is worth a note. A connection that was
cut off for a minute is silent for up to another: TCP doubles its pauses."""

FILL_S = 300.0
"""How long a newcomer may take to have a third of the demonstration model, on a busy machine."""

LOSS, LOSSY_RTT_MS = 0.05, 200.0
SLOW_BYTES_PER_S = 125_000
"""1 Mbit/s."""

DISK_BYTES = 1_000_000
HOUR_S = 3600.0

Act = Callable[[Arena, "Effort"], Awaitable[Sequence[str]]]
"""Harms, repairs, and says what else is worth saying."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is tried."""

    repeats: int = 5
    """Deaths and stalls, one after the other."""
    tokens: int = 12
    """Before, between and after faults."""


@dataclass(frozen=True, slots=True)
class Promise:
    """The most that a token that meets the fault takes longer: round trips and service times."""

    round_trips: float
    services: float = 0.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """One bad day. Tokens are never lost and never wrong; `promise` is about time, where there is one."""

    title: str
    act: Act
    promise: Promise | None = None
    rtt_ms: float | None = None
    """Of its own."""
    places: tuple[Place, ...] = ()
    """What is wrong at the first nodes from the beginning."""


async def kill(arena: Arena, effort: Effort) -> Sequence[str]:
    """SIGKILL to a share of all nodes at once, with a request in flight at one; then new ones in their places."""
    for _ in range(effort.repeats):
        dead = await _at_a_request(arena, KILLED, arena.kill)
        await arena.chronicle.more_tokens(effort.tokens)
        await _replace(arena, dead)
        await arena.chronicle.more_tokens(effort.tokens)
    return ()


async def freeze(arena: Arena, effort: Effort) -> Sequence[str]:
    """SIGSTOP to a share of all nodes at once, with a request in flight at one; later SIGCONT."""

    def stop(nodes: Sequence[LocalNode]) -> Fault:
        for node in nodes:
            node.freeze()
        return arena.chronicle.begin_fault(node.info.peer for node in nodes)

    for _ in range(effort.repeats):
        frozen = await _at_a_request(arena, FROZEN, stop)
        await arena.chronicle.more_tokens(effort.tokens)
        for node in frozen:
            node.thaw()
        arena.chronicle.end_fault(arena.chronicle.faults[-1])
        await arena.chronicle.more_tokens(effort.tokens)
    return ()


async def partition(arena: Arena, effort: Effort) -> Sequence[str]:
    """Cut a share of all nodes off for a minute, then mend the links."""

    def cut(nodes: Sequence[LocalNode]) -> Fault:
        arena.set_links(nodes, replace(arena.settings.link, is_cut=True))
        return arena.chronicle.begin_fault(node.info.peer for node in nodes)

    away = await _at_a_request(arena, FROZEN, cut)
    await asyncio.sleep(PARTITION_S)
    arena.set_links(away, arena.settings.link)
    arena.chronicle.end_fault(arena.chronicle.faults[-1])
    return [await _when_used_again(arena, [node.info.peer for node in away], "after the links were mended")]


async def loss(arena: Arena, effort: Effort) -> Sequence[str]:
    """Every link loses packets."""
    fault = arena.chronicle.begin_fault(arena.peers)
    arena.set_links(arena.nodes, replace(arena.settings.link, loss=LOSS))
    await arena.chronicle.more_tokens(4 * effort.tokens)
    arena.set_links(arena.nodes, arena.settings.link)
    arena.chronicle.end_fault(fault)
    return ()


async def slow_link(arena: Arena, effort: Effort) -> Sequence[str]:
    """One node's link is as slow as a modem of 2005."""

    def slow_down(nodes: Sequence[LocalNode]) -> Fault:
        arena.set_links(nodes, replace(arena.settings.link, rate_bytes_per_s=SLOW_BYTES_PER_S))
        return arena.chronicle.begin_fault(node.info.peer for node in nodes)

    slow = await _at_a_request(arena, "1", slow_down)
    await arena.chronicle.more_tokens(4 * effort.tokens)
    arena.set_links(slow, arena.settings.link)
    arena.chronicle.end_fault(arena.chronicle.faults[-1])
    return ()


async def rolling(arena: Arena, effort: Effort) -> Sequence[str]:
    """Every node drains, ends and is followed by a new one at its place, one after the other, in one answer."""
    for node in tuple(arena.nodes):
        fault = arena.chronicle.begin_fault([node.info.peer])
        await node.leave()
        arena.nodes.remove(node)
        await _replace(arena, [node])
        arena.chronicle.end_fault(fault)
    return ()


async def full_disk(arena: Arena, effort: Effort) -> Sequence[str]:
    """The disks of half of all nodes are full from now on; they log, and serve all the same."""
    full = [node for node in arena.nodes if node.place.disk_bytes is not None]
    fault = arena.chronicle.begin_fault(node.info.peer for node in full)
    sizes = [await asyncio.to_thread(fill_disk, node.pid) for node in full]
    await arena.chronicle.more_tokens(4 * effort.tokens)
    replied = [node for node in full if arena.chronicle.last_reply.get(node.info.peer, 0.0) > fault.at]
    arena.chronicle.end_fault(fault)
    alive = sum(node.process.is_alive() for node in full)
    return [
        f"{len(full)} disks filled up ({min(sizes)} bytes or more); {alive} of their nodes live, {len(replied)} served"
    ]


async def lying_seeder(arena: Arena, effort: Effort) -> Sequence[str]:
    """A node begins with nothing and fills from two holders, of whom one gives wrong bytes; then both are killed, and
    the answer stands on what the newcomer took."""
    liar = next(node for node in arena.nodes if node.place.is_lying)
    replicas = [node for node in arena.nodes if node.experts == liar.experts]
    newcomer = await arena.start_empty_like(liar)
    since = time.perf_counter()
    await _until_replicas(arena, liar.experts, len(replicas) + 1)
    took_s, num_lies = time.perf_counter() - since, arena.num_lies
    if not num_lies:
        raise ShoalError("the liar was not asked for a piece")
    fault = arena.kill(replicas)
    await arena.chronicle.until_replied([newcomer.info.peer], fault.at)
    await arena.chronicle.more_tokens(2 * effort.tokens)
    arena.chronicle.end_fault(fault)
    return [
        f"a node of {newcomer.info.num_missing} experts filled in {took_s:.1f} s beside {num_lies} wrong pieces;"
        f" {len(replicas)} holders, the liar among them, were killed"
    ]


async def _until_replicas(arena: Arena, words: str, count: int) -> None:
    """Wait until the client can ask so many holders for each of these experts of every layer.

    Raises:
        ShoalError: that did not come about.
    """
    first, last = map(int, words.split("-"))
    end, fewest = time.perf_counter() + FILL_S, 0
    while fewest < count:
        if time.perf_counter() > end:
            raise ShoalError(f"the newcomer was not full after {FILL_S:.0f} s")
        await arena.chronicle.more_tokens(1)
        layers = arena.swarm.coverage().values()
        fewest = min(layer[ExpertId(expert)] for layer in layers for expert in range(first, last + 1))


async def wrong_clock(arena: Arena, effort: Effort) -> Sequence[str]:
    """Two nodes' clocks jump, an hour ahead and an hour back, the one that the others joined by among them."""
    off = [node for node in arena.nodes if node.place.clock_offset_s]
    fault = arena.chronicle.begin_fault(node.info.peer for node in off)
    for node in off:
        node.set_clock_wrong()
    await asyncio.sleep(RECORD_TTL_S + effort.tokens)
    replied = sum(arena.chronicle.last_reply.get(node.info.peer, 0.0) > fault.at for node in off)
    alive = sum(node.process.is_alive() for node in off)
    notes = [f"{len(off)} clocks off for longer than a record lives; {alive} of their nodes live, {replied} served"]
    for node in off:
        place = replace(node.place, is_clock_off=True)
        notes.append(await _how_it_starts(arena, replace(node, place=place)))
    arena.chronicle.end_fault(fault)
    return notes


async def _how_it_starts(arena: Arena, like: LocalNode) -> str:
    """What a node says that starts where another is."""
    words = f"a node that starts with its clock {like.place.clock_offset_s:+.0f} s off"
    try:
        await arena.start_in_place_of(like)
    except NodeFailed as error:
        return f"{words} ends: {error}"
    return f"{words} serves"


SCENARIOS: Mapping[str, Scenario] = {
    "kill30": Scenario("kill -9 of 30 % at once", kill, Promise(2.5, services=1)),
    "stop33": Scenario("SIGSTOP of 33 % at once", freeze, Promise(6)),
    "partition": Scenario("33 % cut off for 60 s", partition, Promise(6)),
    "loss": Scenario("5 % loss at 200 ms", loss, rtt_ms=LOSSY_RTT_MS),
    "slow": Scenario("one link of 1 Mbit/s", slow_link),
    "rolling": Scenario("every node restarts in turn", rolling),
    "disk": Scenario("full disks", full_disk, places=(Place(disk_bytes=DISK_BYTES),) * 3),
    "liar": Scenario("a holder gives wrong weights", lying_seeder, places=(Place(is_lying=True),)),
    "clock": Scenario(
        "clocks an hour off",
        wrong_clock,
        places=(Place(clock_offset_s=HOUR_S), Place(), Place(), Place(), Place(clock_offset_s=-HOUR_S)),
    ),
}


def fill_disk(pid: int) -> int:
    """Fill the private disk of a node's process to the last byte; returns what was written."""
    written = 0
    with (Path(f"/proc/{pid}/root{DISK}") / "fill").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            written += os.write(file.fileno(), bytes(65_536))
    return written


async def _at_a_request(
    arena: Arena, how_many: str, harm: Callable[[Sequence[LocalNode]], Fault]
) -> Sequence[LocalNode]:
    """Harm some nodes the moment a request has gone out to one of them, and say whom."""
    harmed: list[LocalNode] = []
    count = count_of(how_many, len(arena.nodes))

    def act(peer: PeerId) -> None:
        harmed.extend(arena.choose(count, peer))
        harm(harmed)

    arena.chronicle.at_next_dispatch(arena.peers, act)
    await arena.chronicle.until_dispatched()
    return harmed


async def _replace(arena: Arena, gone: Sequence[LocalNode]) -> None:
    """Start new nodes in the places of others and wait until the client is connected to them."""
    since = time.perf_counter()
    new = await asyncio.gather(*(arena.start_in_place_of(node) for node in gone))
    await arena.chronicle.until_joined([node.info.peer for node in new], since)


async def _when_used_again(arena: Arena, peers: Sequence[PeerId], since_what: str) -> str:
    since = time.perf_counter()
    with suppress(TimeoutError):
        async with asyncio.timeout(AGAIN_S):
            await arena.chronicle.until_replied(peers, since)
            return f"all of them answered again {time.perf_counter() - since:.1f} s {since_what}"
    again = sum(arena.chronicle.last_reply.get(peer, 0.0) > since for peer in peers)
    return f"{again} of {len(peers)} answered again within {AGAIN_S:.0f} s {since_what}"
