"""Makes a plan of faults happen: on the network, in nodes, in their answers. Every choice comes from its generator."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace

from shoal.protocol.errors import Busy
from shoal.protocol.ids import PeerId
from shoal.protocol.net.channel import Handler, Reply, Request
from shoal.simulations.virtual.faults import Fault, FaultTally, Kind
from shoal.simulations.virtual.node import SimulatedNode
from shoal.simulations.virtual.world import World

BASE_DELAY_S = 0.005
"""One way between any two peers without faults: 10 ms RTT, a country."""

JITTER = 0.2
"""Every segment takes up to this share longer: no two networks are equal."""

SLOWEST = 100.0
"""A SLOW node's kernels take up to this many times longer."""

AT_ONCE = frozenset({Kind.CRASH, Kind.RESTART, Kind.SILENCE, Kind.RESET})
"""Faults that strike a node in the moment in which they begin."""

LONGEST_DELAY_S = 0.4
LONGEST_LATENESS_S = 1.0
BUSY_RETRY_AFTER_S = 0.2


class Injector:
    """One plan in one world. Its hooks (`delay_s`, `tamper`, `wrap`) are given to the world when that is made."""

    def __init__(self, plan: Sequence[Fault], rng: random.Random) -> None:
        self.tally = FaultTally()
        self._plan = plan
        self._rng = rng
        self._active: dict[int, list[Fault]] = {}
        self._places: dict[PeerId, int] = {}

    def delay_s(self, sender: PeerId, receiver: PeerId) -> float:
        """See `memory.Delay`."""
        delay_s = BASE_DELAY_S * (1 + JITTER * self._rng.random())
        for fault in self._between(sender, receiver, Kind.DELAY):
            delay_s += LONGEST_DELAY_S * fault.strength * self._rng.random()
            self.tally.struck[Kind.DELAY] += 1
        return delay_s

    def tamper(self, sender: PeerId, receiver: PeerId, data: bytes) -> Sequence[bytes]:
        """See `memory.Tamper`."""
        for fault in self._between(sender, receiver, Kind.DUPLICATE):
            if self._rng.random() < fault.strength:
                self.tally.struck[Kind.DUPLICATE] += 1
                return (data, data)
        for fault in self._between(sender, receiver, Kind.GARBAGE):
            if self._rng.random() < fault.strength / 2:
                self.tally.struck[Kind.GARBAGE] += 1
                # the first bytes: a memory stream has no cipher, which would notice damage anywhere
                return (self._rng.randbytes(8) + data[8:],)
        return (data,)

    def wrap(self, place: int, honest: Handler) -> Handler:
        """See `world.Wrap`."""

        async def handle(request: Request) -> Reply:
            if self._has(place, Kind.BUSY):
                self.tally.struck[Kind.BUSY] += 1
                raise Busy("a storm", BUSY_RETRY_AFTER_S)
            reply = await honest(request)
            for fault in tuple(self._active.get(place, ())):
                reply = await self._spoil(reply, fault)
            return reply

        return handle

    def look_back(self, world: World) -> None:
        """Count what the nodes know themselves: kernel calls that were slow or stood still, refused writes."""
        for node in world.nodes:
            self.tally.struck[Kind.SLOW] += node.num_slow
            self.tally.struck[Kind.FREEZE] += node.num_frozen
            self.tally.struck[Kind.FULL_DISK] += node.disk.num_refused

    async def run(self, world: World) -> None:
        """Let every fault begin and end at its time."""
        self._places = {node.identity.peer: node.place for node in world.nodes}
        async with asyncio.TaskGroup() as group:
            for fault in self._plan:
                group.create_task(self._happen(fault, world))

    async def _happen(self, fault: Fault, world: World) -> None:
        node, network = world.nodes[fault.node], world.network
        await _sleep_until(fault.at_s)
        self.tally.began[fault.kind] += 1
        if fault.kind in AT_ONCE:
            self.tally.struck[fault.kind] += node.is_up
        match fault.kind:
            case Kind.CRASH:
                await node.crash(network)
            case Kind.RESTART:
                await node.crash(network)
                await _sleep_until(fault.until_s)
                await self._restart(node, world)
            case Kind.SILENCE:
                network.silence(node.identity.peer)
            case Kind.RESET:
                network.reset(node.identity.peer)
            case Kind.STALL | Kind.PARTITION:
                await self._stall(fault, world)
            case _:
                await self._degrade(fault, node)

    async def _restart(self, node: SimulatedNode, world: World) -> None:
        if not node.is_up and not self._is_dead(node.place):
            await node.start(world)

    def _is_dead(self, place: int) -> bool:
        now_s = asyncio.get_running_loop().time()
        return any(fault.kind is Kind.CRASH and fault.node == place and fault.at_s <= now_s for fault in self._plan)

    async def _stall(self, fault: Fault, world: World) -> None:
        """One node, or in a partition every second one."""
        step = 2 if fault.kind is Kind.PARTITION else len(world.nodes)
        nodes = world.nodes[fault.node % step :: step]
        self.tally.struck[fault.kind] += sum(node.is_up for node in nodes)
        peers = [node.identity.peer for node in nodes]
        for peer in peers:
            world.network.stall(peer)
        await _sleep_until(fault.until_s)
        for peer in peers:
            world.network.resume(peer)

    async def _degrade(self, fault: Fault, node: SimulatedNode) -> None:
        """A fault that lasts."""
        active = self._active.setdefault(fault.node, [])
        active.append(fault)
        if fault.kind is Kind.SLOW:
            node.slowness = 1 + SLOWEST * fault.strength
        if fault.kind is Kind.FREEZE:
            node.thawed.clear()
        if fault.kind is Kind.FULL_DISK:
            node.disk.is_full = True
        await _sleep_until(fault.until_s)
        active.remove(fault)
        if fault.kind is Kind.SLOW:
            node.slowness = 1.0
        if not self._has(fault.node, Kind.FREEZE):
            node.thawed.set()
        node.disk.is_full = self._has(fault.node, Kind.FULL_DISK)

    async def _spoil(self, reply: Reply, fault: Fault) -> Reply:
        """What becomes of an answer under a fault of its node."""
        if fault.kind is Kind.LATE_REPLY:
            self.tally.struck[Kind.LATE_REPLY] += 1
            await asyncio.sleep(LONGEST_LATENESS_S * fault.strength * self._rng.random())
        if fault.kind is Kind.LOST_REPLY and self._rng.random() < fault.strength:
            self.tally.struck[Kind.LOST_REPLY] += 1
            await asyncio.Event().wait()  # until the client cancels or its deadline passes
        if fault.kind is Kind.BAD_REPLY and self._rng.random() < fault.strength:
            self.tally.struck[Kind.BAD_REPLY] += 1
            return self._rng.choice((_not_a_number, _other_shape, _other_request))(reply)
        return reply

    def _has(self, place: int, kind: Kind) -> bool:
        return any(fault.kind is kind for fault in self._active.get(place, ()))

    def _between(self, sender: PeerId, receiver: PeerId, kind: Kind) -> list[Fault]:
        places = [self._places[peer] for peer in (sender, receiver) if peer in self._places]
        return [fault for place in places for fault in self._active.get(place, ()) if fault.kind is kind]


def _not_a_number(reply: Reply) -> Reply:
    return replace(reply, body=b"\xff" * memoryview(reply.body).nbytes)


def _other_shape(reply: Reply) -> Reply:
    message = replace(reply.message, num_tokens=reply.message.num_tokens + 1)
    return Reply(message, b"\0" * message.body_size())


def _other_request(reply: Reply) -> Reply:
    message = replace(reply.message, request_hash=bytes(len(reply.message.request_hash)))
    return Reply(message, bytes(message.body_size()))


async def _sleep_until(time_s: float) -> None:
    await asyncio.sleep(max(0.0, time_s - asyncio.get_running_loop().time()))
