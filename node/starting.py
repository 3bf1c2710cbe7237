"""The stages of a node's start, in order: this machine, the swarm, what to hold, the doors through which it is asked.

`daemon.py` goes through them. What a stage opens is closed by the stack that it is given, the latest first.
"""

import asyncio
import os
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version as installed_version

import torch

from shoal.experts.backend import ExpertBackend
from shoal.experts.choose_backend import choose_backend
from shoal.experts.locations import default_cache_dir
from shoal.experts.packed_cache import PackedCache
from shoal.experts.pieces.model import PieceModel
from shoal.experts.store import ModelStore, open_store
from shoal.experts.weight_formats import stored_bytes
from shoal.experts.worker import ComputeWorker
from shoal.node.announcer import Announcer, Claim, Load
from shoal.node.holdings.assignment import Holding, parse_holding
from shoal.node.holdings.joining import Place, look_around
from shoal.node.holdings.nearness import reads_s
from shoal.node.holdings.placement import Shape
from shoal.node.holdings.survey import Me
from shoal.node.holdings.tiers import Tiers, choose_tiers, part_memory
from shoal.node.log_events import ExpertsChosen, NodeStarting, log_event
from shoal.node.revocation_watch import RevocationWatch
from shoal.node.seeding.library import Library
from shoal.node.seeding.seeder import Seeder
from shoal.node.serving.admission import Admission, AdmissionLimits, Wire, no_backlog
from shoal.node.serving.cold import ColdExperts
from shoal.node.serving.self_check import check_ourselves
from shoal.node.serving.server import ExpertServer, Held
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
    without,
)
from shoal.node.weights.on_disk import cold_experts
from shoal.node.weights.packing import open_cache
from shoal.node.weights.space import limit_pieces
from shoal.protocol.identity import Identity, load_or_create_identity
from shoal.protocol.membership import MemberGate, never_revoked
from shoal.protocol.net.channel import GatedListener
from shoal.protocol.net.direct import listen_direct
from shoal.protocol.net.entry import Entry, bootstrap_addresses, enter_swarm
from shoal.protocol.net.libp2p import listen_libp2p
from shoal.protocol.net.mdns import lan_discovery
from shoal.protocol.net.p2pd import P2pdSettings
from shoal.protocol.net.throttle import Throttle
from shoal.protocol.revocation_list import list_name
from shoal.protocol.revocations import Revocations


@dataclass(frozen=True, slots=True)
class Machine:
    """What is here before anybody is asked."""

    settings: NodeSettings
    progress: StageProgress
    throttle: Throttle
    identity: Identity
    backend: ExpertBackend
    worker: ComputeWorker
    store: ModelStore
    named: Holding | None
    """What the owner named; None leaves it to the node."""


async def open_machine(
    settings: NodeSettings, progress: StageProgress, throttle: Throttle, stack: AsyncExitStack
) -> Machine:
    """Open the model and see whether what was named fits.

    Raises:
        ModelNotFound, IntegrityError, InvalidRequest.
    """
    threads = settings.threads or default_threads()
    torch.set_num_threads(threads)
    identity = _identity(settings)
    backend = choose_backend(settings.kernel, threads, settings.vram_bytes)
    worker = ComputeWorker("kernel")
    stack.push_async_callback(worker.aclose)
    store = await open_store(settings.model, settings.cache_dir or default_cache_dir(), partial(progress, "hashing"))
    stack.callback(store.close)
    log_event(NodeStarting(installed_version("shoal"), store.manifest.root.hex()))
    wished = settings.experts or ("all" if settings.anchor else None)
    named = parse_holding(wished, store.spec) if wished else None
    if named is not None and not is_tiered(settings):
        check_memory(settings, store, backend, named)
    return Machine(settings, progress, throttle, identity, backend, worker, store, named)


@dataclass(frozen=True, slots=True)
class Presence:
    """The node in the swarm, before it holds anything."""

    entry: Entry
    admission: Admission
    announcer: Announcer
    renewing: asyncio.Task[None]
    """Tells the directory again and again that we are here."""
    place: Place
    num_cold: int
    """Experts that may be on disk only."""
    num_latest: int
    """Of those, how many may stay in memory once they were read."""


async def enter(machine: Machine, is_open: bool, stack: AsyncExitStack) -> Presence:
    """Enter the swarm and begin to announce. is_open: False says nothing to the directory yet.

    Raises:
        ConnectFailed, AddressInUse: nobody of `settings.join` answers; the port is taken. InvalidRequest: too little
            memory.
    """
    settings, store, identity = machine.settings, machine.store, machine.identity
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
    admission = Admission(limits, time.monotonic, wire_of(machine.throttle))
    claim = Claim(
        identity.peer, store.manifest.root, {}, store.weight_format, machine.backend.kernel_class, (),
        since_s=int(time.time()), zone=settings.zone, gives_trunk=not isinstance(store, PieceModel),
    )  # fmt: skip
    announcer = Announcer(entry.directory, claim, lambda: _load_of(admission))
    announcer.set_present(is_open)
    renewing = asyncio.create_task(announcer.run(), name="announcer")
    stack.push_async_callback(_cancel, renewing)
    num_cold = num_on_disk(settings, store)
    memory = part_memory(capacity(settings, store, machine.backend, machine.named), num_cold, settings.anchor)
    place = Place(
        Shape.of(store.spec), Me(identity.peer, claim.since_s, store.weight_format, settings.zone),
        memory.num_resident, entry.directory, announcer, uniform, time.time,
    )  # fmt: skip
    if machine.named is None and settings.join:
        needed_s = reads_s(store.spec.router, stored_bytes(store.spec.expert, store.weight_format))
        seeds = bootstrap_addresses(settings.join, store.manifest.root)
        around = await look_around(place, entry.p2pd.addresses, seeds, needed_s, time.perf_counter)
        place = replace(place, around=around)
    return Presence(entry, admission, announcer, renewing, place, num_cold, memory.num_latest)


@dataclass(frozen=True, slots=True)
class Stock:
    """What the node holds as it begins to serve."""

    tiers: Tiers
    supply: Supply
    missing: Holding
    """What of `tiers.resident` is not on this machine yet."""
    cache: PackedCache | None
    held: Held
    cold: ColdExperts | None
    reader: ComputeWorker
    """Reads the disk, so that the kernel does not wait for it."""

    @property
    def pinned(self) -> Holding:
        """What its owner named, and nothing else may take the place of."""
        return {} if self.tiers.choice else self.tiers.resident


async def stock_up(machine: Machine, presence: Presence, stack: AsyncExitStack) -> Stock:
    """Choose what to hold, load what of it is here, and prove it by known answers.

    Raises:
        NetworkError, InvalidRequest, IntegrityError.
    """
    settings, store, backend, place = machine.settings, machine.store, machine.backend, presence.place
    tiers = await choose_tiers(place, machine.named, presence.num_cold, settings.anchor, is_alone=not settings.join)
    if tiers.choice is not None:
        log_event(ExpertsChosen(*tiers.choice.figures))
    supply = await stack.enter_async_context(Supply(store, settings.name, machine.progress))
    await supply.keep(tiers.resident)
    await supply.keep(tiers.cold)
    await limit_pieces(settings, store, tiers.all, place)
    missing = await supply.missing(tiers.resident)
    cache = await asyncio.to_thread(open_cache, settings, store, backend)
    source = (store, backend, cache)
    cold = await cold_experts(tiers, presence.num_latest, supply, source, time.perf_counter, settings.anchor)
    held = await load(store, backend, machine.worker, without(tiers.resident, missing), machine.progress, cache)
    await machine.worker.run(check_ourselves, held, backend, store.manifest)
    reader = ComputeWorker("disk")
    stack.push_async_callback(reader.aclose)
    if cold is not None:
        sample = replace(held, experts=await reader.run(cold.sample))
        await machine.worker.run(check_ourselves, sample, backend, store.manifest)
    return Stock(tiers, supply, missing, cache, held, cold, reader)


@dataclass(frozen=True, slots=True)
class Doors:
    """Where the node is asked, and what answers there."""

    server: ExpertServer
    library: Library
    seeder: Seeder
    watch: RevocationWatch | None
    """What knows the revoked tokens of a private swarm."""
    direct: GatedListener
    libp2p: GatedListener

    @property
    def listeners(self) -> tuple[GatedListener, GatedListener]:
        """Both."""
        return self.direct, self.libp2p


async def open_doors(machine: Machine, presence: Presence, stock: Stock, stack: AsyncExitStack) -> Doors:
    """Listen on both channels, for members only where the swarm is private.

    Raises:
        AddressInUse.
    """
    identity, throttle, entry = machine.identity, machine.throttle, presence.entry
    server = ExpertServer(
        stock.held, machine.backend, machine.worker, presence.admission, time.perf_counter, stock.cold, stock.reader
    )
    stack.push_async_callback(server.aclose)
    library = await asyncio.to_thread(Library, machine.store)
    clock = asyncio.get_running_loop().time
    seeder = Seeder(library, presence.admission, wire_of(throttle), server.metrics, clock)
    stack.push_async_callback(seeder.aclose)
    watch = _revocation_watch(entry, machine.settings)
    gate = None
    if watch is not None and entry.membership is not None:
        await watch.look()
        gate = MemberGate(entry.membership.founder_key, watch)
    direct = await listen_direct(
        identity, machine.settings.host, machine.settings.port, server.handle, os.urandom, throttle=throttle,
        gate=gate, pieces=seeder.handle,
    )  # fmt: skip
    stack.push_async_callback(direct.aclose)
    libp2p = await listen_libp2p(identity, entry.p2pd, server.handle, os.urandom, throttle, gate, seeder.handle)
    stack.push_async_callback(libp2p.aclose)
    return Doors(server, library, seeder, watch, direct, libp2p)


def wire_of(throttle: Throttle) -> Wire:
    """The owner's limits on bytes as admission sees them."""
    up, down = throttle.up, throttle.down
    return Wire(
        (lambda: up.backlog_s) if up else no_backlog, up.bytes_per_s if up else None,
        down.bytes_per_s if down else None,
    )  # fmt: skip


def uniform() -> float:
    """A random number in [0, 1)."""
    return int.from_bytes(os.urandom(4), "big") / 2**32


async def _cancel(task: asyncio.Task[None]) -> None:
    """End a task of ours."""
    task.cancel()
    await asyncio.wait({task})


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
