"""Starts a node and stops it: open the model, choose and load experts, enter the swarm, serve, announce, drain.

The composition root of the package: everything else here gets its parts from this module and from `starting.py`, which
has the stages of the start.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from shoal.experts.pieces.model import PieceModel
from shoal.node.addresses import announced
from shoal.node.announcer import Announcer
from shoal.node.holdings.assignment import Holding
from shoal.node.holdings.keeper import Keeper
from shoal.node.holdings.tending import fill_and_heal
from shoal.node.log_events import RecordsNotWithdrawn, log_event
from shoal.node.metrics import NodeMetrics
from shoal.node.node_info import NodeInfo, NodeModel, info_of, model_of
from shoal.node.seeding.connecting import connector_of, is_first, peers_of
from shoal.node.seeding.peers import Wanted
from shoal.node.seeding.seeder import Seeder
from shoal.node.serving.admission import Admission
from shoal.node.serving.gate import WorkGate
from shoal.node.settings import NodeSettings
from shoal.node.starting import Doors, Machine, Presence, Stock, enter, open_doors, open_machine, stock_up, uniform
from shoal.node.weights.filling import Supply
from shoal.node.weights.loading import StageProgress, packer
from shoal.node.weights.packing import keep_packed
from shoal.node.weights.trunk import TrunkKeeper
from shoal.protocol.errors import ShoalError
from shoal.protocol.net.channel import GatedListener, Listener
from shoal.protocol.net.directory import Directory
from shoal.protocol.net.throttle import Throttle


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
    async with AsyncExitStack() as stack:
        machine = await open_machine(settings, progress, throttle or Throttle(), stack)
        presence = await enter(machine, is_open, stack)
        stock = await stock_up(machine, presence, stack)
        doors = await open_doors(machine, presence, stock, stack)
        model = model_of(settings, machine.store, machine.backend)
        keeper = _keeper(machine, presence, stock, model)
        announcer, admission, seeder = presence.announcer, presence.admission, doors.seeder
        addresses = announced(doors.direct.addresses, presence.entry.p2pd.addresses)
        announcer.note(replace(announcer.claim, addresses=addresses))
        gate = WorkGate(doors.server, admission, doors.listeners, announcer, is_open, seeder)
        await keeper.announce(stock.missing)
        missing = await _ask_others(machine, presence, stock, doors, keeper, stack)
        tasks = [presence.renewing, *_background(machine, presence, stock, doors, keeper, missing)]
        try:
            yield Node(
                info_of(announcer.claim, presence.entry, keeper, stock.tiers.choice, missing, doors.library), model,
                keeper, doors.server.metrics, admission, gate, doors.listeners, presence.entry.directory,
                stock.supply, seeder,
            )  # fmt: skip
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            admission.drain()
            seeder.set_open(False)
            await _leave(announcer, doors.listeners, settings.drain_grace_s)
        for task in tasks:
            if not task.cancelled():
                task.result()  # it failed by itself: not to be lost in silence


def _keeper(machine: Machine, presence: Presence, stock: Stock, model: NodeModel) -> Keeper:
    """What holds the experts from now on."""
    pack = packer(machine.store, machine.backend, machine.worker, stock.cache)
    capacity, arriving = presence.place.capacity, stock.supply.arriving
    return Keeper(stock.held, presence.announcer, pack, capacity, model.expert_bytes, arriving, stock.cold)


async def _ask_others(
    machine: Machine, presence: Presence, stock: Stock, doors: Doors, keeper: Keeper, stack: AsyncExitStack
) -> Holding:
    """Let the supply ask peers; where nobody else is, fetch what is missing now. Returns what is still missing."""
    library, place, supply = doors.library, presence.place, stock.supply
    supply.is_open = lambda: presence.announcer.is_present
    if machine.settings.join or not await is_first(place, library.root):
        wanted = Wanted(library.root, tuple(place.shape.layers), library.piece_bytes, machine.identity.peer)
        connector = connector_of(machine.identity, presence.entry, machine.throttle)
        disk = machine.store.shelf.disk if isinstance(machine.store, PieceModel) else None
        given = doors.server.metrics
        swarm = peers_of(
            wanted, presence.entry.directory, connector, uniform, disk, given_bytes=lambda: given.bytes_given
        )
        supply.peers = await stack.enter_async_context(swarm)
    elif stock.missing:
        await keeper.take(stock.missing)  # nobody is here to ask but the model's own sources: what they say is the end
        return {}
    return stock.missing


def _background(
    machine: Machine, presence: Presence, stock: Stock, doors: Doors, keeper: Keeper, missing: Holding
) -> list[asyncio.Task[None]]:
    """What goes on beside serving: filling and healing, packed experts, the trunk for clients, revocations."""
    settings, store = machine.settings, machine.store
    mending = fill_and_heal(settings, presence.place, keeper, stock.pinned, missing, stock.tiers.cold)
    tasks = [
        asyncio.create_task(mending, name="healer"),
        asyncio.create_task(keep_packed(stock.cache, store, stock.held), name="packed cache"),
    ]
    if settings.seed_trunk and isinstance(store, PieceModel):
        trunk = TrunkKeeper(store, presence.announcer, stock.supply.peers, settings.name, machine.progress)
        tasks.append(asyncio.create_task(trunk.run(), name="trunk"))
    if doors.watch is not None:
        tasks.append(asyncio.create_task(doors.watch.run(doors.listeners), name="revocations"))
    return tasks


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
