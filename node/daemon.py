"""Starts a node and stops it: open the model, choose and load experts, enter the swarm, serve, announce, drain.

The composition root of the package: everything else here gets its parts from this module.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version as installed_version

import torch

from shoal.experts.choose_backend import choose_backend
from shoal.experts.locations import default_cache_dir
from shoal.experts.pieces.model import PieceModel
from shoal.experts.store import open_store
from shoal.experts.worker import ComputeWorker
from shoal.node.addresses import announced
from shoal.node.announcer import Announcer, Claim, Load
from shoal.node.holdings.assignment import Holding, parse_holding
from shoal.node.holdings.joining import Place
from shoal.node.holdings.keeper import Keeper
from shoal.node.holdings.placement import Shape
from shoal.node.holdings.survey import Me
from shoal.node.holdings.tending import fill_and_heal
from shoal.node.holdings.tiers import choose_tiers, part_memory
from shoal.node.log_events import ExpertsChosen, NodeStarting, RecordsNotWithdrawn, log_event
from shoal.node.metrics import NodeMetrics
from shoal.node.node_info import NodeInfo, NodeModel, info_of, model_of
from shoal.node.revocation_watch import RevocationWatch
from shoal.node.seeding.connecting import connector_of, is_first, peers_of
from shoal.node.seeding.library import Library
from shoal.node.seeding.peers import Wanted
from shoal.node.seeding.seeder import Seeder
from shoal.node.serving.admission import Admission, AdmissionLimits, Wire, no_backlog
from shoal.node.serving.gate import WorkGate
from shoal.node.serving.self_check import check_ourselves
from shoal.node.serving.server import ExpertServer
from shoal.node.settings import NodeSettings
from shoal.node.weights.filling import Supply
from shoal.node.weights.loading import (
    StageProgress,
    capacity,
    check_memory,
    default_threads,
    is_tiered,
    load,
    num_on_disk,
    packer,
    without,
)
from shoal.node.weights.on_disk import cold_experts
from shoal.node.weights.packing import keep_packed, open_cache
from shoal.node.weights.space import limit_pieces
from shoal.node.weights.trunk import TrunkKeeper
from shoal.protocol.errors import ShoalError
from shoal.protocol.identity import Identity, load_or_create_identity
from shoal.protocol.membership import MemberGate, never_revoked
from shoal.protocol.net.channel import GatedListener, Listener
from shoal.protocol.net.direct import listen_direct
from shoal.protocol.net.directory import Directory
from shoal.protocol.net.entry import Entry, enter_swarm
from shoal.protocol.net.libp2p import listen_libp2p
from shoal.protocol.net.mdns import lan_discovery
from shoal.protocol.net.p2pd import P2pdSettings
from shoal.protocol.net.throttle import Throttle
from shoal.protocol.revocation_list import list_name
from shoal.protocol.revocations import Revocations


def no_progress(stage: str, done_bytes: int, total_bytes: int) -> None:
    """For those who do not want to know."""


@dataclass(frozen=True, slots=True)
class Node:
    """A running node and the parts that its host (`host.py`) looks at and switches."""

    info: NodeInfo
    model: NodeModel
    keeper: Keeper
    metrics: NodeMetrics
    admission: Admission
    gate: WorkGate
    listeners: tuple[GatedListener, ...]
    directory: Directory
    supply: Supply
    seeder: Seeder

    @property
    def holding(self) -> Holding:
        """What it holds now."""
        return self.keeper.holding


async def run_until(
    settings: NodeSettings,
    stop: asyncio.Event,
    on_ready: Callable[[NodeInfo], None],
    progress: StageProgress = no_progress,
) -> None:
    """Run a node until `stop` is set, then drain; a node that is still starting just ends."""

    async def serve(is_ready: asyncio.Event) -> None:
        async with running_node(settings, progress) as node:
            is_ready.set()
            on_ready(node.info)
            await stop.wait()

    await until_stopped(serve, stop)


async def until_stopped(serve: Callable[[asyncio.Event], Coroutine[object, object, None]], stop: asyncio.Event) -> None:
    """Run `serve`, which ends itself after `stop` once it has set the event it is given; before that, cancel it."""
    is_ready = asyncio.Event()
    serving, stopping = asyncio.create_task(serve(is_ready)), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not is_ready.is_set() and not serving.done():
            serving.cancel()
            await asyncio.wait({serving})
        if not serving.cancelled():
            await serving
    finally:
        for task in (serving, stopping):
            task.cancel()
        await asyncio.wait({serving, stopping})


@asynccontextmanager
async def running_node(
    settings: NodeSettings,
    progress: StageProgress = no_progress,
    throttle: Throttle | None = None,
    is_open: bool = True,
) -> AsyncIterator[Node]:
    """A node that serves inside the `with` and drains at its end. `is_open` False: it is paused from the beginning.

    Raises:
        ModelNotFound, IntegrityError, InvalidRequest, AddressInUse, ConnectFailed: nothing is left behind.
    """
    threads = settings.threads or default_threads()
    torch.set_num_threads(threads)
    identity = _identity(settings)
    backend = choose_backend(settings.kernel, threads, settings.vram_bytes)
    throttle = throttle or Throttle()
    async with AsyncExitStack() as stack:
        worker = ComputeWorker("kernel")
        stack.push_async_callback(worker.aclose)
        store = await open_store(
            settings.model, settings.cache_dir or default_cache_dir(), partial(progress, "hashing")
        )
        stack.callback(store.close)
        log_event(NodeStarting(installed_version("shoal"), store.manifest.root.hex()))
        wished = settings.experts or ("all" if settings.anchor else None)
        holding = parse_holding(wished, store.spec) if wished else None
        if holding is not None and not is_tiered(settings):
            check_memory(settings, store, backend, holding)
        entry = await stack.enter_async_context(
            enter_swarm(
                identity,
                settings.join,
                store.manifest.root,
                time.time,
                P2pdSettings(settings.host, settings.p2p_port),
                membership=settings.membership,
                discover=lan_discovery(settings.host, os.urandom) if settings.lan else None,
            )
        )
        limits = AdmissionLimits(settings.max_queue_s, settings.max_queue_bytes, settings.share_burst_s)
        admission = Admission(limits, time.monotonic, _wire_of(throttle))
        claim = Claim(
            identity.peer, store.manifest.root, {}, store.weight_format, backend.kernel_class, (),
            since_s=int(time.time()), zone=settings.zone, gives_trunk=not isinstance(store, PieceModel),
        )  # fmt: skip
        announcer = Announcer(entry.directory, claim, lambda: _load_of(admission))
        announcer.set_present(is_open)
        renewing = asyncio.create_task(announcer.run(), name="announcer")
        stack.push_async_callback(_cancel, renewing)
        num_cold = num_on_disk(settings, store)
        memory = part_memory(capacity(settings, store, backend, holding), num_cold, settings.anchor)
        place = Place(
            Shape.of(store.spec), Me(identity.peer, claim.since_s, store.weight_format, settings.zone),
            memory.num_resident, entry.directory, announcer, _uniform, time.time,
        )  # fmt: skip
        tiers = await choose_tiers(place, holding, num_cold, settings.anchor, is_alone=not settings.join)
        if tiers.choice is not None:
            log_event(ExpertsChosen(*tiers.choice.figures))
        pinned = {} if tiers.choice else tiers.resident
        supply = await stack.enter_async_context(Supply(store, settings.name, progress))
        await supply.keep(tiers.resident)
        await supply.keep(tiers.cold)
        await limit_pieces(settings, store, tiers.all, place)
        missing = await supply.missing(tiers.resident)
        cache = await asyncio.to_thread(open_cache, settings, store, backend)
        source = (store, backend, cache)
        cold = await cold_experts(tiers, memory.num_latest, supply, source, time.perf_counter, settings.anchor)
        held = await load(store, backend, worker, without(tiers.resident, missing), progress, cache)
        await worker.run(check_ourselves, held, backend, store.manifest)
        reader = ComputeWorker("disk")
        stack.push_async_callback(reader.aclose)
        if cold is not None:
            sample = replace(held, experts=await reader.run(cold.sample))
            await worker.run(check_ourselves, sample, backend, store.manifest)
        server = ExpertServer(held, backend, worker, admission, time.perf_counter, cold, reader)
        stack.push_async_callback(server.aclose)
        library = await asyncio.to_thread(Library, store)
        seeder = Seeder(library, admission, _wire_of(throttle), server.metrics, asyncio.get_running_loop().time)
        stack.push_async_callback(seeder.aclose)
        watch = _revocation_watch(entry, settings)
        gate = None
        if watch is not None and entry.membership is not None:
            await watch.look()
            gate = MemberGate(entry.membership.founder_key, watch)
        direct = await listen_direct(
            identity, settings.host, settings.port, server.handle, os.urandom, throttle=throttle, gate=gate,
            pieces=seeder.handle,
        )  # fmt: skip
        stack.push_async_callback(direct.aclose)
        libp2p = await listen_libp2p(identity, entry.p2pd, server.handle, os.urandom, throttle, gate, seeder.handle)
        stack.push_async_callback(libp2p.aclose)
        model = model_of(settings, store, backend)
        keeper = Keeper(
            held, announcer, packer(store, backend, worker, cache), place.capacity, model.expert_bytes,
            supply.arriving, cold,
        )  # fmt: skip
        announcer.note(replace(announcer.claim, addresses=announced(direct.addresses, entry.p2pd.addresses)))
        work_gate = WorkGate(server, admission, (direct, libp2p), announcer, is_open, seeder)
        await keeper.announce(missing)
        supply.is_open = lambda: announcer.is_present
        if settings.join or not await is_first(place, library.root):
            wanted = Wanted(library.root, tuple(place.shape.layers), library.piece_bytes, identity.peer)
            connector = connector_of(identity, entry, throttle)
            disk = store.shelf.disk if isinstance(store, PieceModel) else None
            swarm = peers_of(
                wanted, entry.directory, connector, _uniform, disk, given_bytes=lambda: server.metrics.bytes_given
            )
            supply.peers = await stack.enter_async_context(swarm)
        elif missing:
            await keeper.take(missing)  # nobody is here to ask but the model's own sources: what they say is the end
            missing = {}
        mending = fill_and_heal(settings, place, keeper, pinned, missing, tiers.cold)
        tasks = [renewing, asyncio.create_task(mending, name="healer")]
        tasks.append(asyncio.create_task(keep_packed(cache, store, held), name="packed cache"))
        if settings.seed_trunk and isinstance(store, PieceModel):
            keeping = TrunkKeeper(store, announcer, supply.peers, settings.name, progress)
            tasks.append(asyncio.create_task(keeping.run(), name="trunk"))
        if watch is not None:
            tasks.append(asyncio.create_task(watch.run((direct, libp2p)), name="revocations"))
        try:
            yield Node(
                info_of(announcer.claim, entry, keeper, tiers.choice, missing, library), model, keeper, server.metrics,
                admission, work_gate, (direct, libp2p), entry.directory, supply, seeder,
            )  # fmt: skip
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            admission.drain()
            seeder.set_open(False)
            await _leave(announcer, (direct, libp2p), settings.drain_grace_s)
        for task in tasks:
            if not task.cancelled():
                task.result()  # it failed by itself: not to be lost in silence


def _wire_of(throttle: Throttle) -> Wire:
    """The owner's limits on bytes as admission sees them."""
    up, down = throttle.up, throttle.down
    return Wire(
        (lambda: up.backlog_s) if up else no_backlog, up.bytes_per_s if up else None,
        down.bytes_per_s if down else None,
    )  # fmt: skip


async def _cancel(task: asyncio.Task[None]) -> None:
    """End a task of ours."""
    task.cancel()
    await asyncio.wait({task})


def _uniform() -> float:
    """A random number in [0, 1)."""
    return int.from_bytes(os.urandom(4), "big") / 2**32


def _revocation_watch(entry: Entry, settings: NodeSettings) -> RevocationWatch | None:
    """What knows the revoked tokens of a private swarm; the founder's list is kept beside this machine's own."""
    if entry.membership is None:
        return None
    ours = settings.revoked
    local = Revocations(ours) if ours else never_revoked
    kept = ours.with_name(f"{list_name(entry.membership.founder_key)}.revocations") if ours else None
    return RevocationWatch(entry.membership.founder_key, entry.board, local, kept, time.time)


def _identity(settings: NodeSettings) -> Identity:
    entropy = os.urandom(32)
    return load_or_create_identity(settings.identity, entropy) if settings.identity else Identity.from_seed(entropy)


def _load_of(admission: Admission) -> Load:
    return Load(min(int(admission.macs_per_s / 1e6), 2**32 - 1), min(int(admission.backlog_s * 1000), 3_600_000))


async def _leave(announcer: Announcer, listeners: tuple[Listener, ...], grace_s: float) -> None:
    """Withdraw, and meanwhile tell clients and finish what is in flight."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_withdraw(announcer))
        for listener in listeners:
            group.create_task(listener.drain(grace_s))


async def _withdraw(announcer: Announcer) -> None:
    """A directory that is gone does not keep us."""
    try:
        await announcer.withdraw()
    except ShoalError as error:
        log_event(RecordsNotWithdrawn(type(error).__name__))
