"""What a node answers its owner's programs: status, peers, coverage, pause, resume, logs, drain.

Between the control socket and the running node. Status comes from memory; peers and coverage ask the directory. Knows
no sockets.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed_version

from shoal.node.daemon import Node
from shoal.node.guest.guest import Guest
from shoal.node.guest.transfer_meter import TransferMeter
from shoal.node.holdings.assignment import Holding
from shoal.node.holdings.coverage import Extent, coverage_of, ranges
from shoal.node.logs import LogMemory
from shoal.node.settings import NodeSettings
from shoal.node.weights.loading import default_threads
from shoal.protocol.control import (
    ControlReply,
    ControlRequest,
    Coverage,
    Drain,
    FollowLogs,
    GetCoverage,
    GetPeers,
    GetStatus,
    LayerHolding,
    NodeLimits,
    NodeState,
    NodeStatus,
    Pause,
    Peer,
    PeerRole,
    Peers,
    Resume,
    WeightTransfer,
)
from shoal.protocol.errors import Busy
from shoal.protocol.ids import PeerId
from shoal.protocol.net.channel import Traffic
from shoal.protocol.records import HolderRecord

STARTING_RETRY_S = 5.0
"""Loading takes seconds to minutes."""


@dataclass(slots=True)
class NodeControl:
    """Implements `ControlHandler` for one node; `node` is None while it starts."""

    settings: NodeSettings
    guest: Guest
    meter: TransferMeter
    traffic: Traffic
    lan_traffic: Traffic
    memory: LogMemory
    stop: asyncio.Event
    clock: Callable[[], float]
    started_at_s: float
    node: Node | None = None

    async def __call__(self, request: ControlRequest) -> AsyncGenerator[ControlReply, None]:
        """See `ControlHandler`."""
        match request:
            case FollowLogs():
                async for line in self._logs(request):
                    yield line
            case _:
                yield await self._answer(request)

    async def _answer(self, request: ControlRequest) -> ControlReply:
        match request:
            case GetPeers():
                return await self._peers()
            case GetCoverage():
                return await self._coverage()
            case Pause(duration_s):
                await self.guest.pause(duration_s)
            case Resume():
                await self.guest.resume()
            case Drain():
                self.stop.set()
            case GetStatus() | FollowLogs():
                pass
        return self.status()

    async def _logs(self, request: FollowLogs) -> AsyncGenerator[ControlReply, None]:
        for line in self.memory.last(request.num_lines):
            yield line
        if request.is_following:
            async for line in self.memory.follow():
                yield line

    def status(self) -> NodeStatus:
        """This moment, from memory."""
        settings, node, verdict, rates = self.settings, self.node, self.guest.verdict, self.meter.rates()
        metrics = node.metrics if node else None
        rows = metrics.rows_computed if metrics else 0
        return NodeStatus(
            name=settings.name,
            version=installed_version("shoal"),
            pid=os.getpid(),
            peer=node.info.peer if node else "",
            state=self._state(),
            pause_reason=verdict.reason,
            paused_until_s=verdict.until_s,
            started_at_s=self.started_at_s,
            model=settings.model.name,
            model_root=node.info.model_root if node else "",
            weight_format=node.model.weight_format.name.lower() if node else "",
            kernel=node.model.kernel if node else "",
            holding=tuple(LayerHolding(layer, ranges(ids)) for layer, ids in node.holding.items()) if node else (),
            num_experts=node.keeper.num_experts if node else 0,
            resident_bytes=node.keeper.resident_bytes if node else 0,
            num_clients=len(_clients(node)) if node else 0,
            requests_served=metrics.requests_served if metrics else 0,
            requests_refused=metrics.requests_refused if metrics else 0,
            rows_computed=rows,
            tokens_given=rows / node.model.experts_per_token if node else 0.0,
            compute_s=metrics.compute_s if metrics else 0.0,
            queue_s=node.admission.backlog_s if node else 0.0,
            bytes_up=self.traffic.bytes_sent,
            bytes_down=self.traffic.bytes_received,
            up_bytes_per_s=rates.up,
            down_bytes_per_s=rates.down,
            month=self.meter.month,
            month_bytes=self.meter.month_bytes,
            limits=limits_of(settings),
            addresses=node.info.addresses if node else (),
            lan_bytes_up=self.lan_traffic.bytes_sent,
            lan_bytes_down=self.lan_traffic.bytes_received,
            weights=_weights_of(node) if node else WeightTransfer(),
            num_cold=_count(node.keeper.cold) if node else 0,
            read_ms=node.keeper.read_ms if node else 0,
        )

    def _state(self) -> NodeState:
        if self.stop.is_set():
            return NodeState.DRAINING
        if self.node is None:
            return NodeState.STARTING
        return NodeState.SERVING if self.node.gate.is_open else NodeState.PAUSED

    async def _peers(self) -> Peers:
        node = self._ready()
        ours = node.info.peer
        holders = [_holder(peer, records, ours) for peer, records in sorted((await self._records(node)).items())]
        clients = [Peer(peer, PeerRole.CLIENT, num_connections=n, requests_served=served) for peer, (n, served) in
                   sorted(_clients(node).items())]  # fmt: skip
        return Peers((*holders, *clients))

    async def _coverage(self) -> Coverage:
        node = self._ready()
        model = node.model
        extent = Extent(model.root, model.layers, model.experts_per_layer, model.expert_bytes, model.weight_format)
        return coverage_of(extent, await node.directory.lookup(model.root, model.layers))

    async def _records(self, node: Node) -> dict[PeerId, list[HolderRecord]]:
        """What is held by whom, by the directory; withdrawn records left out."""
        found: dict[PeerId, list[HolderRecord]] = {}
        for records in (await node.directory.lookup(node.model.root, node.model.layers)).values():
            for record in records:
                offered = record.experts | record.cold
                if offered and max(offered) < node.model.experts_per_layer:
                    found.setdefault(record.peer, []).append(record)
        return found

    def _ready(self) -> Node:
        if self.node is None:
            raise Busy("the node is still starting", STARTING_RETRY_S)
        return self.node


def limits_of(settings: NodeSettings) -> NodeLimits:
    """The owner's limits as he reads them."""
    guest = settings.guest
    return NodeLimits(
        ram_bytes=settings.share_bytes,
        disk_bytes=guest.disk_bytes,
        threads=settings.threads or default_threads(),
        up_bytes_per_s=guest.up_bytes_per_s,
        down_bytes_per_s=guest.down_bytes_per_s,
        monthly_bytes=guest.monthly_bytes,
        vram_bytes=settings.vram_bytes,
        lan_unlimited=guest.lan_unlimited,
        cold_bytes=settings.cold_bytes,
    )


def _holder(peer: PeerId, records: Sequence[HolderRecord], ours: PeerId) -> Peer:
    newest = max(records, key=lambda record: record.seq)
    return Peer(
        peer=peer,
        role=PeerRole.SELF if peer == ours else PeerRole.HOLDER,
        addresses=newest.addresses,
        holding=tuple(LayerHolding(record.layer, ranges(record.experts)) for record in records if record.experts),
        num_experts=sum(len(record.experts) for record in records),
        capacity_mmacs=newest.capacity_mmacs,
        queue_s=newest.queue_ms / 1000,
        expires_at_s=newest.expires_at_s,
        num_cold=sum(len(record.cold) for record in records),
        read_ms=newest.read_ms,
    )


def _count(holding: Holding) -> int:
    return sum(map(len, holding.values()))


def _weights_of(node: Node) -> WeightTransfer:
    """What comes and what is given, at this moment."""
    filled, metrics, now_s = node.supply.filled, node.metrics, asyncio.get_running_loop().time()
    return WeightTransfer(
        num_missing=filled.num_missing,
        num_fetched=filled.num_fetched,
        missing_bytes=filled.missing_bytes,
        fetched_bytes=filled.fetched_bytes,
        peer_bytes=filled.peer_bytes,
        fetched_bytes_per_s=filled.bytes_per_s(now_s),
        left_s=filled.left_s(now_s),
        pieces_given=metrics.pieces_given,
        bytes_given=metrics.bytes_given,
        fetches_refused=metrics.fetches_refused,
        num_takers=node.seeder.choke.num_turns,
        num_waiting=node.seeder.choke.num_waiting,
    )


def _clients(node: Node) -> dict[PeerId, tuple[int, int]]:
    """Open lanes and answered requests by client."""
    found: dict[PeerId, tuple[int, int]] = {}
    for client in (client for listener in node.listeners for client in listener.clients()):
        lanes, served = found.get(client.peer, (0, 0))
        found[client.peer] = (lanes + client.num_lanes, served + client.num_served)
    return found
