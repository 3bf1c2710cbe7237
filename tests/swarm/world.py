"""A swarm inside one event loop: real nodes' servers, real client, memory channels and directory. No sockets.

For the whole-system oracles and for faults that must hit an exact moment.
"""

import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from shoal.client.engine.engine_settings import EngineSettings
from shoal.client.engine.generate import Engine
from shoal.client.routing.activations import Activations
from shoal.client.routing.dispatch import SwarmExperts
from shoal.client.routing.holders import Holders
from shoal.client.routing.model_id import model_id as model_id_of
from shoal.client.single_process import open_trunk
from shoal.client.speculation.choice import Speculation, choose_drafter, drafts_by_mtp
from shoal.client.speculation.mtp_drafter import MtpDrafter
from shoal.client.swarm import ROUNDINGS, Swarm
from shoal.client.tally import Observers
from shoal.client.trunk.local_experts import LocalExperts
from shoal.client.trunk.model import Timing
from shoal.experts.backend import PackedExpert
from shoal.experts.choose_backend import KernelChoice, choose_backend
from shoal.experts.store import ModelStore
from shoal.experts.worker import InlineWorker
from shoal.node.announcer import Announcer, Claim, Load
from shoal.node.holdings.assignment import parse_holding
from shoal.node.serving.admission import Admission, AdmissionLimits
from shoal.node.serving.gate import WorkGate
from shoal.node.serving.server import ExpertServer, Held
from shoal.protocol.events import Event
from shoal.protocol.identity import Identity
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.net.channel import Handler, Reply, Request
from shoal.protocol.net.memory import MemoryNetwork
from shoal.protocol.net.memory_directory import MemoryDirectory
from shoal.protocol.record_book import RecordBook

NOW_S = 1_790_000_000.0
"""Unix time in this world, until somebody lets it pass."""


MAX_WAIT_S = 2.0
"""How long a layer waits for holders that are busy or gone: tests of gaps wait for it."""


class AgingDirectory(MemoryDirectory):
    """The client's view of the directory; a test may let time pass for it alone, until every record has expired."""

    def __init__(self, book: RecordBook, identity: Identity) -> None:
        self.now_s = NOW_S
        super().__init__(book, identity, lambda: self.now_s)


@dataclass
class Client:
    """The client of a world and its parts."""

    swarm: Swarm
    holders: Holders
    directory: AgingDirectory
    events: list[Event]


@dataclass
class World:
    """What a test may touch. `handlers` may be replaced while the swarm runs."""

    network: MemoryNetwork
    servers: dict[PeerId, ExpertServer]
    handlers: dict[PeerId, Handler]
    announcers: dict[PeerId, Announcer]
    gates: dict[PeerId, WorkGate]
    client: Client
    store: ModelStore

    @property
    def swarm(self) -> Swarm:
        return self.client.swarm

    @property
    def events(self) -> list[Event]:
        return self.client.events

    @property
    def peers(self) -> list[PeerId]:
        return list(self.servers)


@asynccontextmanager
async def memory_swarm(
    model: Path,
    holdings: Sequence[str],
    cache_dir: Path,
    dtype: str = "fp32",
    seed: int = 0,
    impostors: Mapping[int, Path] = MappingProxyType({}),
    settings: EngineSettings = EngineSettings(),  # noqa: B008  # frozen
    speculation: Speculation = Speculation.OFF,
    activations: Activations = Activations.EXACT,
) -> AsyncIterator[World]:
    """Nodes with these `--experts` words, and a client that has joined them.

    impostors: nodes, by place, that compute with another checkpoint's weights under this model's name.
    """
    entropy = random.Random(seed)
    network, book = MemoryNetwork(), RecordBook()
    servers: dict[PeerId, ExpertServer] = {}
    handlers: dict[PeerId, Handler] = {}
    announcers: dict[PeerId, Announcer] = {}
    gates: dict[PeerId, WorkGate] = {}
    async with AsyncExitStack() as stack:
        store = stack.enter_context(ModelStore.open(model, cache_dir))
        for place, words in enumerate(holdings):
            identity = Identity.from_seed(entropy.randbytes(32))
            weights = stack.enter_context(ModelStore.open(impostors.get(place, model), cache_dir))
            admission = Admission(AdmissionLimits(), time.monotonic)
            server = expert_server(weights, words, store.manifest.root, admission)
            servers[identity.peer], handlers[identity.peer] = server, server.handle
            stack.push_async_callback(server.aclose)

            async def handle(request: Request, peer: PeerId = identity.peer) -> Reply:
                return await handlers[peer](request)

            listener = await network.listen(identity, handle, entropy.randbytes)
            stack.push_async_callback(listener.aclose)
            holding = parse_holding(words, store.spec)
            claim = Claim(identity.peer, store.manifest.root, holding, store.weight_format, 0, listener.addresses)
            directory = MemoryDirectory(book, identity, lambda: NOW_S)
            announcers[identity.peer] = Announcer(directory, claim, lambda: Load(0, 0))
            await announcers[identity.peer].announce()
            gates[identity.peer] = WorkGate(server, admission, [listener], announcers[identity.peer])
        client = await _client(stack, store, model, network, book, dtype, entropy, settings, speculation, activations)
        yield World(network, servers, handlers, announcers, gates, client, store)


def expert_server(store: ModelStore, words: str, model_root: bytes, admission: Admission) -> ExpertServer:
    """A node's server with the experts that these words name, under the name of a model."""
    backend, experts = choose_backend(KernelChoice.AUTO, 1), dict[LayerId, dict[ExpertId, PackedExpert]]()
    for layer, ids in parse_holding(words, store.spec).items():
        experts[layer] = {expert: backend.pack(store.spec.expert, store.expert(layer, expert)) for expert in ids}
    held = Held(model_root, store.weight_format, store.spec.expert, experts)
    return ExpertServer(held, backend, InlineWorker(), admission, time.perf_counter)


async def _client(
    stack: AsyncExitStack,
    store: ModelStore,
    model: Path,
    network: MemoryNetwork,
    book: RecordBook,
    dtype: str,
    entropy: random.Random,
    settings: EngineSettings,
    speculation: Speculation,
    activations: Activations,
) -> Client:
    identity, events = Identity.from_seed(entropy.randbytes(32)), list[Event]()
    observe, directory = Observers(events.append), AgingDirectory(book, identity)
    spec, rounding = store.spec, ROUNDINGS[dtype]
    model_id = model_id_of(store, rounding)
    layers = [layer for layer in spec.moe_layers if layer < spec.num_layers]
    connector = network.connector(identity, entropy.randbytes)
    stack.push_async_callback(connector.aclose)
    holders = Holders(
        directory,
        connector,
        store.manifest,
        model_id,
        layers,
        observe,
        entropy.choice,
        time.perf_counter,
        entropy.random,
        measures_links=activations is Activations.AUTO,
    )
    stack.push_async_callback(holders.aclose)
    await holders.start()
    wants_mtp = drafts_by_mtp(speculation, store, model_id.expert_bytes, free_bytes=2**40)
    opened = open_trunk(store, model, rounding, InlineWorker(), wants_mtp=wants_mtp)
    own_experts = LocalExperts(store, choose_backend(KernelChoice.AUTO, 1), rounding, InlineWorker())
    drafter = choose_drafter(speculation, MtpDrafter(opened.mtp, own_experts) if opened.mtp else None)
    experts = SwarmExperts(holders, model_id, observe, time.perf_counter, entropy.random, MAX_WAIT_S, activations)
    timing = Timing(0, time.perf_counter, observe)
    engine = Engine(opened.trunk, experts, opened.tokenizer, settings=settings, timing=timing, drafter=drafter)
    stack.push_async_callback(engine.aclose)
    swarm = Swarm(engine, holders, model_id, layers, observe, time.perf_counter)
    return Client(swarm, holders, directory, events)
