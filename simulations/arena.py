"""A swarm on a network of its own and a client that answers on it: what trials and chaos scenarios act upon.

Real node processes, a real client in this process, and between them namespaces and a relay where this user may have
them, else delays in the client's channels.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from multiprocessing.context import ForkServerContext
from pathlib import Path

from shoal.client import Sampling, Swarm, SwarmSettings, Token
from shoal.client.single_process import single_process_engine
from shoal.client.swarm import ROUNDINGS, unwrapped
from shoal.client.tally import Observers
from shoal.client.trunk.linear_maker import TrunkFormat
from shoal.experts.family import CONFIG_FILE
from shoal.experts.locations import default_cache_dir
from shoal.experts.manifest_maker import Progress
from shoal.experts.pieces.shelf import Shelf
from shoal.experts.store import open_store
from shoal.experts.worker import ComputeWorker
from shoal.protocol.errors import InvalidRequest, ShoalError
from shoal.protocol.events import Observer, ignore
from shoal.protocol.ids import PeerId
from shoal.protocol.net.channel import Connector
from shoal.simulations.chronicle import Chronicle, Fault
from shoal.simulations.churn import victims
from shoal.simulations.exact_timers import EXACT
from shoal.simulations.local import Launcher, LocalNode, LocalSwarmSettings, launcher
from shoal.simulations.node_process import LIES, Place
from shoal.simulations.scratch import temporary_files_in
from shoal.simulations.wan.link import Link
from shoal.simulations.wan.namespace import inside_network, set_congestion_control
from shoal.simulations.wan.network import Network, open_network
from shoal.simulations.wan.shaped_channel import ShapedConnector

CONNECT_TIMEOUT_S = 90.0
"""For all holders to be connected before the answer begins: five turns of a client that tries again."""


class NetworkKind(StrEnum):
    """Where delay, loss and rate come from."""

    NAMESPACES = "namespaces"
    """A network namespace a node, joined by the relay."""
    CHANNEL = "channel"
    """The client's channels, in user space; nodes are on loopback."""
    LOOPBACK = "loopback"
    """Nothing is asked for: nodes are on loopback."""


@dataclass(frozen=True, slots=True)
class ArenaSettings:
    """What an arena is made of."""

    swarm: LocalSwarmSettings
    link: Link
    network: NetworkKind
    seed: int = 0
    dtype: str = "fp32"
    channel: str = "direct"
    activations: str = "exact"
    congestion_control: str = ""
    """TCP's, in namespaces; empty: as the kernel has it."""
    trunk_format: str = "dense"
    speculate: str = "off"
    """Who drafts for the client."""
    places: tuple[Place, ...] = ()
    """What is wrong at the first nodes; addresses and namespaces are filled in. Others have nothing wrong."""


@dataclass(slots=True)
class Arena:
    """A running swarm, its client, and the means to do it harm. Made by `open_arena`."""

    settings: ArenaSettings
    nodes: list[LocalNode]
    """Those that serve."""
    swarm: Swarm
    chronicle: Chronicle
    chance: random.Random
    network: Network | None
    _launch: Launcher = field(repr=False)

    @property
    def peers(self) -> list[PeerId]:
        """Of the nodes that serve."""
        return [node.info.peer for node in self.nodes]

    def choose(self, count: int, first: PeerId | None = None) -> list[LocalNode]:
        """Nodes that may go at once and leave a holder of every expert, `first` among them.

        Raises:
            InvalidRequest: there are no so many.
        """
        position = self.peers.index(first) if first is not None else None
        chosen = victims([node.experts for node in self.nodes], count, self.chance, position)
        return [self.nodes[index] for index in chosen]

    def kill(self, nodes: Sequence[LocalNode]) -> Fault:
        """SIGKILL to all at once."""
        fault = self.chronicle.begin_fault((node.info.peer for node in nodes), is_death=True)
        for node in nodes:
            node.kill()
        self.nodes = [node for node in self.nodes if node not in nodes]
        return fault

    async def start_in_place_of(self, gone: LocalNode) -> LocalNode:
        """A new node with what a dead one held, at its place, joining through those that live.

        Raises:
            NodeFailed: it could not start.
        """
        join = [address for node in self.nodes if node is not gone for address in node.info.join]
        node = await self._launch.start(gone.experts, join, gone.place)
        self.nodes.append(node)
        return node

    async def start_empty_like(self, other: LocalNode) -> LocalNode:
        """A new node at another's address that is to hold the same experts, and has not a byte of them: it knows the
        model's manifest and config, and no source but its peers.

        Raises:
            NodeFailed: it could not start.
        """
        folder = await _known_by_name(self.settings.swarm, self._launch.scratch / "store")
        join = [address for node in self.nodes for address in node.info.join]
        node = await self._launch.start(other.experts, join, replace(other.place, is_lying=False), folder)
        self.nodes.append(node)
        return node

    @property
    def num_lies(self) -> int:
        """Wrong pieces that lying nodes have given."""
        told = self._launch.scratch / LIES
        return told.stat().st_size if told.exists() else 0

    def set_links(self, nodes: Sequence[LocalNode], link: Link) -> None:
        """Give some nodes another link; needs namespaces."""
        if self.network is None:
            raise ShoalError("links can change only where there are namespaces")
        for host in self.network.hosts:
            if host.address in {node.place.address for node in nodes}:
                self.network.set_link(host.index, link)

    def join_another(self, observe: Observer) -> AbstractAsyncContextManager[Swarm]:
        """One more client, in this process as the first one; it may find holders that are still to be connected."""
        settings = self.settings
        return Swarm.join(_join(settings, self.nodes[0]), observe, wrap=_wrap(settings, self.chance))

    async def answer(self, prompt_ids: Sequence[int], sampling: Sampling, on_token: Callable[[Token], None]) -> None:
        """One answer, token by token, into the chronicle and to `on_token`. Raises as `Swarm.stream`."""
        self.chronicle.begin_answer()
        async with aclosing(self.swarm.stream(list(prompt_ids), sampling)) as tokens:
            async for token in tokens:
                self.chronicle.add_token()
                on_token(token)


@asynccontextmanager
async def open_arena(
    context: ForkServerContext,
    settings: ArenaSettings,
    num_experts: int,
    on_nodes: Callable[[list[LocalNode]], None],
    observe: Observer = ignore,
) -> AsyncIterator[Arena]:
    """Start network and nodes, join them; all of it has ended after the `with`. on_nodes: told when nodes serve.
    observe: told of the client's events, as the chronicle is.

    Raises:
        ShoalError: what network, nodes or swarm raise.
    """
    chronicle, chance = Chronicle(), random.Random(settings.seed)
    async with AsyncExitStack() as stack:
        network = None
        if settings.network is NetworkKind.NAMESPACES:
            links = [settings.link] * (settings.swarm.num_nodes + 1)  # the last is the client's
            network = await stack.enter_async_context(open_network(context, links, settings.seed))
            _set_congestion_control(network, settings.congestion_control)
        launch = await stack.enter_async_context(launcher(context, settings.swarm))
        nodes = await launch.all(_places(settings, network), num_experts)
        on_nodes(nodes)
        stack.enter_context(temporary_files_in(launch.scratch))
        if network is not None:
            stack.enter_context(inside_network(network.hosts[-1].namespace))
        observers = Observers(chronicle)
        observers.add(observe)
        joining = Swarm.join(_join(settings, nodes[0]), observers, wrap=_wrap(settings, chance))
        swarm = await stack.enter_async_context(joining)
        await _until_connected(swarm, chronicle, nodes)
        yield Arena(settings, nodes, swarm, chronicle, chance, network, launch)


def _set_congestion_control(network: Network, name: str) -> None:
    """
    Raises:
        InvalidRequest: this kernel has not got it for namespaces.
    """
    for host in network.hosts if name else ():
        with inside_network(host.namespace):
            try:
                set_congestion_control(name)
            except OSError as error:
                raise InvalidRequest(f"no congestion control {name} in a network namespace: {error}") from error


async def _until_connected(swarm: Swarm, chronicle: Chronicle, nodes: Sequence[LocalNode]) -> None:
    """Wait for all holders: on a busy machine a connection fails and is opened again 15 seconds later.

    Raises:
        CoverageGap: after a long time some expert has no holder.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await chronicle.until_joined([node.info.peer for node in nodes], since=0.0)
    swarm.require_coverage()


async def _known_by_name(settings: LocalSwarmSettings, store_dir: Path) -> Path:
    """A folder of a new shelf that has everything of the model but its weights."""
    with await open_store(settings.model, settings.cache_dir or default_cache_dir()) as store:
        config = await asyncio.to_thread((settings.model / CONFIG_FILE).read_bytes)
        return Shelf(store_dir).add("demo", store.manifest, {CONFIG_FILE: config}, ()).directory


async def num_experts_of(settings: LocalSwarmSettings, progress: Progress | None) -> int:
    """Opens the model once before the nodes do, so that a missing manifest is made once and not by every node."""
    with await open_store(settings.model, settings.cache_dir or default_cache_dir(), progress) as store:
        return store.spec.router.num_experts


async def single_process_tokens(
    settings: ArenaSettings, prompt_ids: Sequence[int], sampling: Sampling
) -> tuple[int, ...]:
    """The same answer from one process that holds every expert: what a swarm's must be equal to."""
    worker = ComputeWorker("reference")
    try:
        rounding, swarm = ROUNDINGS[settings.dtype], settings.swarm
        with single_process_engine(swarm.model, rounding, worker, swarm.cache_dir, TrunkFormat.DENSE) as engine:
            return (await engine.generate(list(prompt_ids), sampling)).token_ids
    finally:
        await worker.aclose()


def _places(settings: ArenaSettings, network: Network | None) -> list[Place]:
    num_nodes = settings.swarm.num_nodes
    places = [*settings.places, *[Place()] * num_nodes][:num_nodes]
    if network is None:
        return places
    return [
        replace(place, address=host.address, namespace=host.namespace)
        for place, host in zip(places, network.hosts, strict=False)
    ]


def _join(settings: ArenaSettings, node: LocalNode) -> SwarmSettings:
    swarm = settings.swarm
    return SwarmSettings(
        swarm.model,
        (node.info.invite,),
        settings.dtype,
        settings.channel,
        swarm.cache_dir,
        threads=swarm.threads,
        requires_coverage=False,
        activations=settings.activations,
        trunk_format=settings.trunk_format,
        speculate=settings.speculate,
    )


def _wrap(settings: ArenaSettings, chance: random.Random) -> Callable[[Connector], Connector]:
    if settings.network is not NetworkKind.CHANNEL:
        return unwrapped
    return lambda connector: ShapedConnector(connector, settings.link, chance.random, timers=EXACT)
