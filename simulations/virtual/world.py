"""The parts of one run: nodes, a client, their network and directory; all real code but sockets, threads and time.

What a kernel call takes is a number here, not what it takes this machine: virtual time passes, then arithmetic runs.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType

from shoal.client.engine.engine_settings import EngineSettings
from shoal.client.engine.generate import Engine
from shoal.client.routing.dispatch import MAX_WAIT_S, SwarmExperts
from shoal.client.speculation.drafter import Drafter
from shoal.client.swarm import Swarm
from shoal.client.tally import Observers
from shoal.node.holdings.assignment import Holding
from shoal.node.holdings.healer import HealSettings
from shoal.protocol.events import DispatchSent, Event, Observer
from shoal.protocol.identity import Identity
from shoal.protocol.net.memory import Delay, MemoryNetwork, Tamper
from shoal.protocol.net.memory_directory import MemoryDirectory
from shoal.protocol.record_book import RecordBook
from shoal.simulations.virtual.model import SimulatedModel
from shoal.simulations.virtual.node import EPOCH_S, READ_COST_S, SimulatedNode, Surroundings, Wrap
from shoal.simulations.virtual.watched_holders import WatchedHolders


@dataclass(frozen=True, slots=True)
class Speculation:
    """How clients guess ahead."""

    drafter: Drafter
    width: int
    """Drafts a stream and pass."""


@dataclass(frozen=True)
class SimulatedClient:
    """One client and what it looks through."""

    holders: WatchedHolders
    engine: Engine
    swarm: Swarm


@dataclass
class World(Surroundings):
    """Everything of one run."""

    nodes: list[SimulatedNode]
    max_wait_s: float
    """How long a client waits for experts that nobody holds."""
    engine_settings: EngineSettings
    clients: list[SimulatedClient]
    drafter: Drafter | None = None
    """Who guesses ahead for all clients."""
    num_needless: int = 0
    """Requests to a disk for what somebody else holds who was never in trouble."""

    @property
    def swarm(self) -> Swarm:
        """The first client's."""
        return self.clients[0].swarm

    @property
    def engine(self) -> Engine:
        """The first client's."""
        return self.clients[0].engine

    async def join(self, observers: Observers) -> None:
        """A client enters."""
        loop, model = asyncio.get_running_loop(), self.model
        identity = Identity.from_seed(self.entropy.randbytes(32))
        directory = MemoryDirectory(self.book, identity, lambda: EPOCH_S + loop.time())
        connector = self.network.connector(identity, self.entropy.randbytes)
        holders = WatchedHolders(
            directory,
            connector,
            model.store.manifest,
            model.id,
            model.layers,
            observers,
            self.entropy.choice,
            loop.time,
            self.entropy.random,
        )
        experts = SwarmExperts(holders, model.id, observers, loop.time, self.entropy.random, self.max_wait_s)
        tokenizer, settings = model.opened.tokenizer, self.engine_settings
        engine = Engine(model.opened.trunk, experts, tokenizer, settings=settings, drafter=self.drafter)
        swarm = Swarm(engine, holders, model.id, model.layers, observers, loop.time)
        self.clients.append(SimulatedClient(holders, engine, swarm))
        observers.add(holders.saw)
        observers.add(lambda event: self._judge(holders, event))
        await holders.start()

    def _judge(self, holders: WatchedHolders, event: Event) -> None:
        if isinstance(event, DispatchSent) and holders.is_needless(event.peer, event.layer, event.experts):
            self.num_needless += 1


@asynccontextmanager
async def open_world(
    model: SimulatedModel,
    holdings: Sequence[Holding],
    skews_s: Sequence[float],
    entropy: random.Random,
    delay_s: Delay,
    tamper: Tamper,
    wrap: Wrap,
    observe: Observer,
    capacities: Sequence[int] = (),
    heal: HealSettings = HealSettings(),  # noqa: B008  # frozen
    max_wait_s: float = MAX_WAIT_S,
    num_clients: int = 1,
    anchors: Mapping[int, int] = MappingProxyType({}),
    cold: Mapping[int, Holding] = MappingProxyType({}),
    read_cost_s: float = READ_COST_S,
    decode_groups: int | None = None,
    speculation: Speculation | None = None,
) -> AsyncIterator[World]:
    """Start one node per holding, and clients that have joined them; end all of them. capacities: experts that each
    node may hold to mend the swarm; empty: none takes anything over. anchors: nodes, by place, that read from their
    disks, and how many experts each keeps in memory of what it read; all that they have, or what `cold` names.
    decode_groups: of a client's streams; None: as it finds."""
    nodes = [
        SimulatedNode(place, Identity.from_seed(entropy.randbytes(32)), holding, skew_s)
        for place, (holding, skew_s) in enumerate(zip(holdings, skews_s, strict=True))
    ]
    for node, capacity in zip(nodes, capacities, strict=False):
        node.capacity = capacity
    for place, num_cached in anchors.items():
        nodes[place].num_cached, nodes[place].read_cost_s = num_cached, read_cost_s
    for place, on_disk in cold.items():
        nodes[place].cold = on_disk
    drafter, width = (speculation.drafter, speculation.width) if speculation else (None, None)
    network, settings = MemoryNetwork(delay_s, tamper), EngineSettings(decode_groups=decode_groups, draft_width=width)
    world = World(model, entropy, network, RecordBook(), wrap, heal, nodes, max_wait_s, settings, [], drafter)
    try:
        for node in nodes:
            await node.start(world)
        for _ in range(num_clients):
            await world.join(Observers(observe))
        yield world
    finally:
        for client in world.clients:
            await client.engine.aclose()
            await client.holders.aclose()
        for node in nodes:
            await node.aclose()
