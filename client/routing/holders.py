"""The live view of who can compute what: directory records, channels to their holders, and how well each answers.

Between the directory and `dispatch`. A background task refreshes records and reconnects; a holder is offered only while
it is connected, has passed its challenge, is not draining and its breaker is closed.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from shoal.client.routing.audit import challenge
from shoal.client.routing.health import Health, Standing
from shoal.client.routing.link_rate import NUM_PINGS, LinkRate
from shoal.client.routing.model_id import ModelId
from shoal.experts.manifest import Manifest
from shoal.protocol.errors import AuthenticationFailed, DeadlineExceeded, ShoalError
from shoal.protocol.events import HolderJoined, HolderLost, Observer
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.net.channel import Channel, Connector, Traffic
from shoal.protocol.net.directory import Directory
from shoal.protocol.net.task_set import TaskSet
from shoal.protocol.records import HolderRecord

logger = logging.getLogger(__name__)

REFRESH_S = 15.0
"""Between two looks into the directory: a third of the life of a record that is renewed at a third of its own."""

RECONNECT_S = 0.5
"""After a connection broke: a process that was restarted is back by then, and not all clients come at once."""

MAX_PROBE_PAUSE_S = 1.0
"""Between two pings of a holder that does not answer."""

GIVE_UP_SILENT_S = 10.0
"""A connection that has answered no ping for so long is opened anew. TCP doubles its pauses while a cable is cut and
needs as long again to notice that it is mended (measured: 90 s after a minute); a router may have forgotten it."""

CONNECT_TIMEOUT_S = 5.0
"""For connection, handshake and challenge together they may take twice this."""

MAX_PARALLEL_CONNECTS = 16
"""Connections that are opened at the same time."""


@dataclass(slots=True)
class Holder:
    """One peer that announces experts of our model."""

    peer: PeerId
    addresses: tuple[str, ...] = ()
    experts: dict[LayerId, frozenset[ExpertId]] = field(default_factory=dict)
    """In its memory."""
    cold: dict[LayerId, frozenset[ExpertId]] = field(default_factory=dict)
    """On its disk: the last resort."""
    health: Health = field(default_factory=Health)
    channel: Channel | None = None

    @property
    def is_anchor(self) -> bool:
        """It is a last resort and nothing else."""
        return bool(self.cold) and not self.experts

    def offers(self, is_cold: bool) -> dict[LayerId, frozenset[ExpertId]]:
        """What it has on its disk, or in its memory."""
        return self.cold if is_cold else self.experts

    def num_cold(self, layer: LayerId, experts: Collection[ExpertId]) -> int:
        """How many of these it has to read first."""
        return len(self.cold.get(layer, frozenset()).intersection(experts))

    @property
    def is_connected(self) -> bool:
        return self.channel is not None and not (self.channel.is_closed or self.channel.is_draining)

    def is_usable(self, now: float) -> bool:
        return self.is_connected and self.health.standing(now) is Standing.USABLE


class Holders:
    """All holders of one model that we know. Use inside `async with`-like pairs of `start` and `aclose`."""

    def __init__(
        self,
        directory: Directory,
        connector: Connector,
        manifest: Manifest,
        model: ModelId,
        layers: Sequence[LayerId],
        observe: Observer,
        choose_probe: Callable[[Sequence[ExpertId]], ExpertId],
        clock: Callable[[], float],
        draw: Callable[[], float],
        measures_links: bool = False,
    ) -> None:
        """choose_probe: which expert to challenge a holder with. clock: seconds, for durations. draw: a number in 0..1,
        for jitter. measures_links: pings each holder at first, to know later what bytes cost."""
        self._measures_links = measures_links
        self._draw = draw
        self._has_lost = asyncio.Event()
        self._probes = TaskSet()
        self._clock = clock
        self._directory = directory
        self._connector = connector
        self._manifest = manifest
        self._model = model
        self._layers = layers
        self._observe = observe
        self._choose_probe = choose_probe
        self._holders: dict[PeerId, Holder] = {}
        self._past_traffic = Traffic()
        self._refreshing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look up, connect, challenge; then keep doing so in the background."""
        await self.refresh()
        self._task = asyncio.create_task(self._run(), name="holders")

    async def aclose(self) -> None:
        """Stop refreshing and probing, and close all channels."""
        await self._probes.aclose()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await asyncio.gather(*(holder.channel.aclose() for holder in self._holders.values() if holder.channel))

    def of_standing(
        self, layer: LayerId, standing: Standing, excluded: Collection[PeerId] = (), is_cold: bool = False
    ) -> dict[PeerId, frozenset[ExpertId]]:
        """Experts of a layer by connected holder of this standing; those on its disk, or those in its memory."""
        now = asyncio.get_running_loop().time()
        return {
            holder.peer: holder.offers(is_cold)[layer]
            for holder in self._holders.values()
            if layer in holder.offers(is_cold)
            and holder.peer not in excluded
            and holder.is_connected
            and holder.health.standing(now) is standing
        }

    def busy_for_s(self, peers: Collection[PeerId]) -> float:
        """Seconds until the first of these that are busy takes requests again; 0 if none is."""
        now = asyncio.get_running_loop().time()
        waits_s = [self._holders[peer].health.busy_until - now for peer in peers]
        return min((wait_s for wait_s in waits_s if wait_s > 0), default=0.0)

    @property
    def peers(self) -> Collection[PeerId]:
        """All that we know."""
        return self._holders.keys()

    def costs(self, peers: Iterable[PeerId]) -> Mapping[PeerId, float]:
        """Expected seconds of an exchange by holder."""
        return {peer: self._holders[peer].health.cost_s() for peer in peers}

    def read_costs(self) -> Mapping[PeerId, float]:
        """Expected seconds of reading one expert by holder."""
        return {peer: holder.health.read_s for peer, holder in self._holders.items()}

    def hoped_for(self, layer: LayerId, hopeless: Collection[PeerId]) -> frozenset[ExpertId]:
        """Experts of a layer that somebody who has them in memory may yet compute: who is connected, not in `hopeless`,
        and whose breaker is closed. Who is busy will have time."""
        now = asyncio.get_running_loop().time()
        return frozenset[ExpertId]().union(
            *(
                holder.experts[layer]
                for holder in self._holders.values()
                if layer in holder.experts
                and holder.is_connected
                and (holder.peer not in hopeless or holder.health.standing(now) is Standing.BUSY)
                and holder.health.may_answer(now)
            )
        )

    def doubtful(self, peers: Collection[PeerId]) -> tuple[PeerId, ...]:
        """Those of these whose breaker is open."""
        now = asyncio.get_running_loop().time()
        return tuple(peer for peer in peers if not self._holders[peer].health.may_answer(now))

    def holder(self, peer: PeerId) -> Holder:
        return self._holders[peer]

    def replicas(self, layer: LayerId) -> dict[ExpertId, int]:
        """How many usable holders each expert of a layer has; 0 for none. What is on disks is no replica, but it can be
        computed: all disks together count as one holder where there is nobody else."""
        counts = dict.fromkeys((ExpertId(i) for i in range(self._model.num_experts)), 0)
        for experts in self.of_standing(layer, Standing.USABLE).values():
            for expert in experts:
                counts[expert] += 1
        for experts in self.of_standing(layer, Standing.USABLE, is_cold=True).values():
            for expert in experts:
                counts[expert] = max(counts[expert], 1)
        return counts

    @property
    def traffic(self) -> Traffic:
        """Bytes of all channels so far, closed ones included."""
        total = Traffic(self._past_traffic.bytes_sent, self._past_traffic.bytes_received)
        for holder in self._holders.values():
            if holder.channel is not None:
                total.bytes_sent += holder.channel.traffic.bytes_sent
                total.bytes_received += holder.channel.traffic.bytes_received
        return total

    def not_held(self, peer: PeerId, layer: LayerId, experts: Collection[ExpertId]) -> None:
        """A holder said that it does not have some of these: believe that until its record says otherwise."""
        for held in (self._holders[peer].experts, self._holders[peer].cold):
            held[layer] = held.get(layer, frozenset()) - frozenset(experts)

    def overtaken(self, peer: PeerId, waited_s: float, macs: int) -> None:
        """Another holder answered first."""
        self.fell_silent(peer)
        self._holders[peer].health.was_overtaken(waited_s, macs, asyncio.get_running_loop().time(), self._draw())

    def fell_silent(self, peer: PeerId) -> None:
        """Ping a holder until it answers, so that no token is the probe."""
        holder = self._holders[peer]
        if not holder.health.is_silent:
            holder.health.is_silent = True
            self._probes.start(self._probe(holder), f"probe of {peer}")

    async def _probe(self, holder: Holder) -> None:
        pause_s, now = holder.health.rto_s(0), asyncio.get_running_loop().time
        give_up_at = now() + GIVE_UP_SILENT_S
        try:
            while holder.channel is not None and holder.is_connected:
                try:
                    await holder.channel.ping(holder.health.rto_s(0))
                    return
                except DeadlineExceeded as error:
                    if now() > give_up_at:
                        await self._give_up(holder, holder.channel, error)
                        return
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, MAX_PROBE_PAUSE_S)
        except ShoalError:
            return  # the channel has ended; connecting again asks it anew
        finally:
            holder.health.is_silent = False

    async def _give_up(self, holder: Holder, channel: Channel, error: ShoalError) -> None:
        """Close a channel that answers nothing, or is to be left; the next look into the directory may open another."""
        await channel.aclose()
        if holder.channel is channel:
            self.failed(holder.peer, error)

    def failed(self, peer: PeerId, error: ShoalError) -> None:
        """A holder failed a request: remember it, and drop the channel if it is dead."""
        holder = self._holders[peer]
        holder.health.failed(error, asyncio.get_running_loop().time(), self._draw())
        if holder.channel is not None and holder.channel.is_closed:
            self._drop_channel(holder)
            self._observe(HolderLost(peer, type(error).__name__))
            self._has_lost.set()

    async def refresh(self) -> None:
        """Read the directory and connect to whom we are not connected; holders that fail are left for the next turn.

        Raises:
            NetworkError: the directory itself can not be read.
        """
        async with self._refreshing:
            found = await self._directory.lookup(self._model.root, self._layers)
            self._take(found)
            await self._leave_barred()
            limit = asyncio.Semaphore(MAX_PARALLEL_CONNECTS)
            now = asyncio.get_running_loop().time()
            missing = [
                holder
                for holder in self._holders.values()
                if (holder.experts or holder.cold)
                and not holder.is_connected
                and holder.health.standing(now) <= Standing.DOUBTED
            ]
            await asyncio.gather(*(self._connect(holder, limit) for holder in missing))

    def _take(self, found: Mapping[LayerId, Sequence[HolderRecord]]) -> None:
        """Make the directory's answer our view.

        A holder whose record is missing is kept while it is connected: the directory may have lost it, and the holder
        itself says NOT_HELD if it must. One that has withdrawn (an empty record) is let go, and a revoked member's.
        """
        for holder in self._holders.values():
            if not holder.is_connected:
                holder.experts, holder.cold = {}, {}
        for layer, records in found.items():
            for record in records:
                if not self._fits(record):
                    continue
                holder = self._holders.setdefault(record.peer, Holder(record.peer))
                holder.addresses = record.addresses
                holder.health.read_was_said(record.read_ms / 1000)
                for offered, experts in ((holder.experts, record.experts), (holder.cold, record.cold)):
                    offered[layer] = experts
                    if not experts:
                        del offered[layer]

    async def _leave_barred(self) -> None:
        """End what we have with nodes of members whose token was revoked: replicas answer, and those see no more."""
        for holder in [each for each in self._holders.values() if self._directory.is_barred(each.peer)]:
            holder.experts, holder.cold = {}, {}
            if holder.channel is not None:
                await self._give_up(
                    holder, holder.channel, AuthenticationFailed(f"the token of {holder.peer} was revoked")
                )

    def _fits(self, record: HolderRecord) -> bool:
        serves_rounding = record.roundings >> self._model.rounding & 1
        return bool(serves_rounding) and record.weight_format == self._model.weight_format

    async def _connect(self, holder: Holder, limit: asyncio.Semaphore) -> None:
        if holder.channel is not None:
            if not holder.channel.is_closed:
                return  # draining: it finishes what it has
            self._drop_channel(holder)
        channel: Channel | None = None
        async with limit:
            try:
                channel = await self._connector.connect(holder.peer, holder.addresses, CONNECT_TIMEOUT_S)
                offered = holder.experts or holder.cold
                layer = min(offered)
                expert = self._choose_probe(sorted(offered[layer]))
                holder.health.saw_rtt(await challenge(channel, self._manifest, self._model, layer, expert, self._clock))
                holder.health.link = await self._link_of(channel)
            except BaseException as error:
                if channel is not None:
                    await channel.aclose()
                if not isinstance(error, ShoalError):
                    raise
                logger.info("holder %s is not used: %s", holder.peer, type(error).__name__)
                holder.health.failed(error, asyncio.get_running_loop().time(), self._draw())
                return
        holder.channel = channel
        holder.health.failures = 0
        self._observe(HolderJoined(holder.peer, sum(len(experts) for experts in holder.experts.values())))

    async def _link_of(self, channel: Channel) -> LinkRate:
        """A link that nothing but pings has crossed; raises as they do."""
        link = LinkRate()
        await self._ping(channel, link, NUM_PINGS if self._measures_links else 0)
        return link

    async def _ping(self, channel: Channel, link: LinkRate, num_pings: int) -> None:
        for _ in range(num_pings):
            started = self._clock()
            await channel.ping(CONNECT_TIMEOUT_S)
            link.pinged(self._clock() - started)

    async def ping_all(self, num_pings: int) -> None:
        """Ping every connected holder so many times, all holders at once: the shortest is `PeerSnapshot.ping_ms`. One
        that does not answer keeps what it had."""

        async def ping(channel: Channel, link: LinkRate) -> None:
            with contextlib.suppress(ShoalError):
                await self._ping(channel, link, num_pings)

        connected = [each for each in self._holders.values() if each.is_connected]
        await asyncio.gather(*(ping(each.channel, each.health.link) for each in connected if each.channel))

    def _drop_channel(self, holder: Holder) -> None:
        if holder.channel is not None:
            self._past_traffic.bytes_sent += holder.channel.traffic.bytes_sent
            self._past_traffic.bytes_received += holder.channel.traffic.bytes_received
            holder.channel = None

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S):
                    await self._has_lost.wait()
                    self._has_lost.clear()
                    await asyncio.sleep(RECONNECT_S * (0.5 + self._draw()))
            try:
                await self.refresh()
            except ShoalError as error:
                logger.warning("the directory could not be read, will try again: %s", error)
