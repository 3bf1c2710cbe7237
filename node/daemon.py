"""Starts a node and stops it: open the model, choose and load experts, enter the swarm, serve, announce, drain.

The composition root of the package: everything else here gets its parts from this module.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

import torch

from shoal.experts.choose_backend import choose_backend
from shoal.experts.locations import default_cache_dir
from shoal.experts.store import open_store
from shoal.experts.worker import ComputeWorker
from shoal.node.addresses import announced
from shoal.node.admission import Admission
from shoal.node.announcer import Announcer, Claim, Load
from shoal.node.assignment import parse_holding
from shoal.node.loading import StageProgress, check_memory, choose_holding, default_threads, load
from shoal.node.metrics import NodeMetrics
from shoal.node.self_check import check_ourselves
from shoal.node.server import ExpertServer, Held
from shoal.node.settings import NodeSettings
from shoal.protocol.errors import ShoalError
from shoal.protocol.identity import Identity, load_or_create_identity
from shoal.protocol.ids import PeerId
from shoal.protocol.invite import Invite, encode_invite
from shoal.protocol.net.channel import Listener
from shoal.protocol.net.direct import listen_direct
from shoal.protocol.net.entry import enter_swarm
from shoal.protocol.net.libp2p import listen_libp2p
from shoal.protocol.net.p2pd import P2pd, P2pdSettings

logger = logging.getLogger(__name__)


def no_progress(stage: str, done_bytes: int, total_bytes: int) -> None:
    """For those who do not want to know."""


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """What a running node tells its user. `join`: multiaddrs; `invite`: the same and the model's root as one token."""

    peer: PeerId
    model_root: str
    join: tuple[str, ...]
    invite: str
    addresses: tuple[str, ...]
    num_experts: int
    resident_bytes: int
    p2pd_pid: int
    """Our p2pd: it ends by itself within seconds when this process is killed."""


@dataclass(frozen=True, slots=True)
class Node:
    """A running node."""

    info: NodeInfo
    metrics: NodeMetrics


async def serve_until_stopped(
    settings: NodeSettings, on_ready: Callable[[NodeInfo], None], progress: StageProgress = no_progress
) -> None:
    """Run a node until SIGTERM or SIGINT, then drain; a second signal ends it at once.

    Raises:
        ShoalError: it could not start.
    """
    stop = asyncio.Event()
    loop, main = asyncio.get_running_loop(), asyncio.current_task()

    def on_signal() -> None:
        if stop.is_set() and main is not None:
            main.cancel()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    with suppress(asyncio.CancelledError):
        await run_until(settings, stop, on_ready, progress)


async def run_until(
    settings: NodeSettings,
    stop: asyncio.Event,
    on_ready: Callable[[NodeInfo], None],
    progress: StageProgress = no_progress,
) -> None:
    """Run a node until `stop` is set, then drain; a node that is still starting just ends."""
    is_ready = asyncio.Event()

    async def serve() -> None:
        async with running_node(settings, progress) as node:
            is_ready.set()
            on_ready(node.info)
            await stop.wait()

    serving, stopping = asyncio.create_task(serve()), asyncio.create_task(stop.wait())
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
async def running_node(settings: NodeSettings, progress: StageProgress = no_progress) -> AsyncIterator[Node]:
    """A node that serves inside the `with` and drains at its end.

    Raises:
        ModelNotFound, IntegrityError, InvalidRequest, AddressInUse, ConnectFailed: nothing is left behind.
    """
    threads = settings.threads or default_threads()
    torch.set_num_threads(threads)
    identity = _identity(settings)
    backend = choose_backend(settings.kernel, threads)
    async with AsyncExitStack() as stack:
        worker = ComputeWorker("kernel")
        stack.push_async_callback(worker.aclose)
        store = await open_store(
            settings.model, settings.cache_dir or default_cache_dir(), partial(progress, "hashing")
        )
        stack.callback(store.close)
        holding = parse_holding(settings.experts, store.spec) if settings.experts else None
        if holding is not None:
            check_memory(settings, store, backend, holding)
        entry = await stack.enter_async_context(
            enter_swarm(
                identity, settings.join, store.manifest.root, time.time, P2pdSettings(settings.host, settings.p2p_port)
            )
        )
        if holding is None:
            holding = await choose_holding(settings, store, backend, entry.directory, identity.peer)
        held = await load(store, backend, worker, holding, progress)
        await worker.run(check_ourselves, held, backend, store.manifest)
        admission = Admission(settings.max_queue_macs)
        server = ExpertServer(held, backend, worker, admission, time.perf_counter)
        direct = await listen_direct(identity, settings.host, settings.port, server.handle, os.urandom)
        stack.push_async_callback(direct.aclose)
        libp2p = await listen_libp2p(identity, entry.p2pd, server.handle, os.urandom)
        stack.push_async_callback(libp2p.aclose)
        claim = Claim(
            identity.peer, store.manifest.root, holding, store.weight_format, backend.kernel_class,
            announced(direct.addresses, entry.p2pd.addresses),
        )  # fmt: skip
        announcer = Announcer(entry.directory, claim, lambda: _load_of(admission), time.time)
        await announcer.announce()
        renewing = asyncio.create_task(announcer.run(), name="announcer")
        try:
            yield Node(_info(claim, entry.p2pd, held), server.metrics)
        finally:
            renewing.cancel()
            admission.drain()
            await _leave(announcer, (direct, libp2p), settings.drain_grace_s)


def _identity(settings: NodeSettings) -> Identity:
    entropy = os.urandom(32)
    return load_or_create_identity(settings.identity, entropy) if settings.identity else Identity.from_seed(entropy)


def _load_of(admission: Admission) -> Load:
    return Load(min(int(admission.macs_per_s / 1e6), 2**32 - 1), min(int(admission.backlog_s * 1000), 3_600_000))


def _info(claim: Claim, p2pd: P2pd, held: Held) -> NodeInfo:
    packed = [expert for layer in held.experts.values() for expert in layer.values()]
    return NodeInfo(
        peer=claim.peer,
        model_root=claim.model_root.hex(),
        join=p2pd.addresses,
        invite=encode_invite(Invite(claim.model_root, p2pd.addresses)),
        addresses=claim.addresses,
        num_experts=len(packed),
        resident_bytes=sum(expert.resident_bytes for expert in packed),
        p2pd_pid=p2pd.pid,
    )


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
        logger.info("holder records were not withdrawn and will expire: %s", error)
