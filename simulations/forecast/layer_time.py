"""How long one layer of one pass takes: the trunk's part, then the slowest holder.

A request leaves when the ones before it have been written, crosses the trunk host's uplink, half a round trip, waits
and is computed, and comes back through the holder's uplink and the trunk host's downlink, which its siblings share. The
trunk host reads one answer after another; the layer waits for the last, and what that one's time was made of is what
the layer's time was made of. Where all processes share one machine, its cores are what they wait for too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, repeat

import numpy as np

from shoal.client.routing.choose import Held, Plan
from shoal.protocol.ids import ExpertId, PeerId
from shoal.simulations.forecast.compute import Calibration, Times, expert_times, shared_expert_times, trunk_times
from shoal.simulations.forecast.peers import LayerView, Peer, TrunkHost
from shoal.simulations.forecast.routing import Choices, Generator
from shoal.simulations.forecast.schedule import ENDLESS, Exchange, LayerWork, Step, finish_s
from shoal.simulations.forecast.shape import ModelShape
from shoal.simulations.forecast.shared_cores import SharedMachine
from shoal.simulations.forecast.tcp import Windows, last_packet_bytes, num_packets, repair_s, wire_bytes

KIB = 1024
HEDGE_QUANTILE_FACTOR = 1.25
"""A second holder is asked after the first's 95th percentile: this many times its usual time."""


Chosen = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
"""bool[T, E]: whether a token goes to an expert."""

Choose = Callable[[Sequence[ExpertId], Held, Mapping[PeerId, float]], Plan]


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the network and the machines do beside their plain figures."""

    jitter: float = 0.0
    """Every way takes up to this share longer, uniformly."""
    stall_share: float = 0.0
    """Requests that take `stall_factor` times as long."""
    stall_factor: float = 10.0
    is_hedged: bool = True
    """Whether a stalled request is overtaken by a replica."""
    is_tcp: bool = True
    """Whether bytes travel in packets, with headers, windows that grow and links that pass them on whole."""
    loss: float = 0.0
    """Share of packets that are lost, each way."""
    shared: SharedMachine | None = None
    """The machine that all of them are processes of. None: each has one of its own."""


@dataclass(slots=True)
class Parts:
    """Seconds by what they went to; their sum is the time of the pass."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, time_s: float) -> None:
        """Count time that went to `name`."""
        self.seconds[name] = self.seconds.get(name, 0.0) + time_s

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())


RTT, UPLINK, DOWNLINK = "RTT", "uplink", "downlink"
TRUNK, EXPERTS, OVERHEAD = "trunk compute", "expert compute", "overhead"
STALLS, DEATHS, LOSSES = "stalls", "deaths", "lost packets"
HOLDER_UPLINK, HOLDER_DOWNLINK = "holders' uplink", "holders' downlink"
HOLDER_QUEUE, HOLDER_CALL = "holders' queue", "holders' own time"
SLOW_START, SHARED_CORES, RELAY = "TCP's slow start", "shared cores", "emulated network"
CLIENT = "client"
"""The trunk host's process that writes and reads; the trunk itself computes beside it."""

ON_CORES = (EXPERTS, HOLDER_QUEUE, HOLDER_CALL)
"""Parts of a request's time in which its holder computes."""


@dataclass(slots=True)
class Traffic:
    """What crossed the trunk host's link, how often holders were asked, and who computed for how long."""

    num_calls: int = 0
    up_bytes: int = 0
    down_bytes: int = 0
    num_packets: int = 0
    """Both ways."""
    client_s: float = 0.0
    """Of the trunk host, beside the trunk."""
    holders_s: float = 0.0
    """Of all holders together."""
    relay_s: float = 0.0
    """Of an emulated network."""

    def per(self, count: int) -> "MeanTraffic":
        """Mean of so many passes."""
        return MeanTraffic(self.num_calls / count, (self.up_bytes + self.down_bytes) / count, self.num_packets / count)


@dataclass(frozen=True, slots=True)
class MeanTraffic:
    """Of a pass, both ways."""

    num_calls: float
    num_bytes: float
    num_packets: float


@dataclass(frozen=True, slots=True)
class _Frames:
    """What one exchange carries and has computed; bytes on the wire."""

    out_bytes: int
    reply_bytes: int
    compute_s: float


@dataclass(frozen=True, slots=True)
class _Request:
    """One request, and what its time is made of but for waiting for others."""

    peer: Peer
    out_bytes: int
    """On the wire."""
    reply_bytes: int
    write_s: float
    """The trunk host's work before it."""
    read_s: float
    """And after its answer."""
    window_s: tuple[float, float]
    """Waits for TCP's window, there and back."""
    turns_s: float
    """How much later it has crossed the uplink because its packets take turns with those of requests after it."""
    parts: dict[str, float]
    """All but writing, reading and the trunk host's downlink."""


class LayerClock:
    """Times layers of one swarm."""

    def __init__(
        self,
        model: ModelShape,
        trunk: TrunkHost,
        peers: Sequence[Peer],
        calibration: Calibration,
        conditions: Conditions,
        choose: Choose,
    ) -> None:
        self.model = model
        self.trunk = trunk
        self.traffic = Traffic()
        self.windows = Windows()
        self._conditions = conditions
        self._choose = choose
        self._calibration = calibration
        self._exchange_s, self._kib_s = calibration.exchange_us / 1e6, calibration.exchange_us_per_kib / 1e6
        self._dispatch_s = calibration.dispatch_us / 1e6
        self._peers = {peer.name: peer for peer in peers}
        by_rates = {rates: expert_times(calibration, rates, model) for rates in {peer.rates for peer in peers}}
        self._expert_s: Mapping[PeerId, Times] = {peer.name: by_rates[peer.rates] for peer in peers}
        self._trunk_s = trunk_times(calibration, trunk.rates, model)
        self._shared_s = shared_expert_times(calibration, trunk.rates, model)

    def trunk_s(self, num_rows: int) -> float:
        """Of a whole pass, without shared experts, which run while answers travel."""
        return float(self._trunk_s[num_rows])

    def moe_layer(self, view: LayerView, choices: Choices, rng: Generator, parts: Parts) -> None:
        """Add the time of a MoE layer's experts, routed and shared, to `parts`. choices: i64[T, K]."""
        requests = self._requests(view, choices, rng, parts)
        if self._conditions.shared is None:
            self._wait(requests, float(self._shared_s[len(choices)]), parts)
        else:
            self._wait_on_cores(self._conditions.shared, requests, parts)

    def chunk_layer(self, view: LayerView, choices: Choices, rng: Generator, parts: Parts, trunk_s: float) -> LayerWork:
        """The same as work for a schedule, in which chunks overlap. trunk_s: of the layer. What the slowest exchange
        would take alone is added to `parts`."""
        cold = Parts()
        requests = self._requests(view, choices, rng, cold)
        trunk_s += self._dispatch_s + cold.total_s
        slowest = max(requests, key=lambda each: sum(each.parts.values()))
        for name, time_s in slowest.parts.items():
            parts.add(name, time_s)
        parts.add(TRUNK, trunk_s)
        parts.add(DOWNLINK, slowest.reply_bytes / self.trunk.link.down)
        return LayerWork(Step(TRUNK, trunk_s), [self._steps(each) for each in requests])

    def _requests(self, view: LayerView, choices: Choices, rng: Generator, parts: Parts) -> "list[_Request]":
        """Whom the client asks for what."""
        chosen = np.zeros((len(choices), self.model.router.num_experts), dtype=bool)
        np.put_along_axis(chosen, choices, True, axis=1)
        needed = [ExpertId(expert) for expert in np.flatnonzero(chosen.any(axis=0)).tolist()]
        plan = self._choose(needed, view.held, view.cost)
        frames = [self._frames(name, chosen[:, share]) for name, share in plan.shares.items()]
        up_s = self._up_times(list(plan.shares), [each.out_bytes for each in frames])
        requests, sent_bytes = list[_Request](), 0
        for (name, share), each, crossed_s in zip(plan.shares.items(), frames, up_s, strict=True):
            sent_bytes += each.out_bytes
            turns_s = max(0.0, crossed_s - sent_bytes / self.trunk.link.up)
            request = self._request(self._peers[name], each, crossed_s, turns_s, rng)
            has_replica = any(share[0] in experts for other, experts in view.held.items() if other != name)
            self._add_losses(request, has_replica, rng)
            requests.append(request)
        self._count(requests)
        self._add_cold(requests, parts)
        return requests

    def _on_wire(self, size_bytes: int) -> int:
        return wire_bytes(size_bytes) if self._conditions.is_tcp else size_bytes

    def _frames(self, holder: PeerId, chosen: Chosen) -> "_Frames":
        """What goes to a holder and comes back. chosen: bool[T, its experts]."""
        rows, num_tokens = chosen.sum(axis=0), int(chosen.any(axis=1).sum())
        out = self._on_wire(self.model.request_bytes(num_tokens, int(rows.sum())))
        back = self._on_wire(self.model.reply_bytes(num_tokens))
        return _Frames(out, back, float(self._expert_s[holder][rows].sum()))

    def _up_times(self, holders: Sequence[PeerId], sizes: Sequence[int]) -> list[float]:
        """When each of a layer's requests has crossed the trunk host's uplink: one after another, as they are written;
        where a connection's window has no room for a frame, packets of all take turns and all are there as late."""
        up, has_room = self.trunk.link.up, self.windows.has_room
        if not self._conditions.is_tcp or all(map(has_room, holders, repeat(True), sizes)):
            return [sent / up for sent in accumulate(sizes)]
        return [sum(min(size, other) for other in sizes) / up for size in sizes]

    def _request(self, peer: Peer, frames: "_Frames", up_s: float, turns_s: float, rng: Generator) -> _Request:
        """One exchange."""
        out, back, compute_s = frames.out_bytes, frames.reply_bytes, frames.compute_s
        jitter, kib_s = self._conditions.jitter, self._kib_s * (out + back) / KIB
        window_s = self._window_s(peer, out, back)
        ways = 1.0 + (jitter * rng.random() + jitter * rng.random()) / 2 if jitter else 1.0
        holder_s = self._calibration.holder_share * self._exchange_s + self._calibration.holder_share_of_kib * kib_s
        at_client_s, trunk_link = (self._exchange_s + kib_s - holder_s) / 2, self.trunk.link
        parts = {
            UPLINK: up_s,
            HOLDER_DOWNLINK: self._second_link_s(out, trunk_link.up, peer.link.down),
            RTT: peer.rtt_s * ways,
            SLOW_START: sum(window_s),
            HOLDER_QUEUE: compute_s * peer.load / (2 * (1 - peer.load)),  # M/D/1
            EXPERTS: compute_s,
            HOLDER_CALL: peer.call_s + holder_s,
            HOLDER_UPLINK: back / peer.link.up,
        }
        if self._conditions.stall_share and rng.random() < self._conditions.stall_share:
            parts[STALLS] = self._stall_s(sum(parts.values()))
        return _Request(peer, out, back, at_client_s, at_client_s, window_s, turns_s, parts)

    def _second_link_s(self, size_bytes: int, first: float, second: float) -> float:
        """What a frame that has passed one link takes to have passed the next."""
        slower_s = max(0.0, size_bytes / second - size_bytes / first)
        return slower_s + (last_packet_bytes(size_bytes) / max(first, second) if self._conditions.is_tcp else 0.0)

    def _window_s(self, peer: Peer, out: int, back: int) -> tuple[float, float]:
        if not self._conditions.is_tcp:
            return 0.0, 0.0
        up, down = min(self.trunk.link.up, peer.link.down), min(self.trunk.link.down, peer.link.up)
        there_s = self.windows.wait_s(peer.name, True, out, peer.rtt_s, up)
        return there_s, self.windows.wait_s(peer.name, False, back, peer.rtt_s, down)

    def _stall_s(self, usual_s: float) -> float:
        """Extra time of a stalled request: a replica answers `usual_s` after it was asked."""
        stalled_s = usual_s * (self._conditions.stall_factor - 1)
        return min(stalled_s, usual_s * HEDGE_QUANTILE_FACTOR) if self._conditions.is_hedged else stalled_s

    def _add_losses(self, request: _Request, has_replica: bool, rng: Generator) -> None:
        """The worst of its packets' losses; a replica, where there is one, is asked when the answer is late."""
        loss, worst = self._conditions.loss, 0
        if not loss:
            return
        for _ in range(num_packets(request.out_bytes) + num_packets(request.reply_bytes)):
            num_lost = 0
            while rng.random() < loss:
                num_lost += 1
            worst = max(worst, num_lost)
        if worst:
            usual_s, lost_s = sum(request.parts.values()), repair_s(request.peer.rtt_s, worst)
            is_overtaken = self._conditions.is_hedged and has_replica
            request.parts[LOSSES] = min(lost_s, usual_s * HEDGE_QUANTILE_FACTOR) if is_overtaken else lost_s

    def _count(self, requests: Sequence[_Request]) -> None:
        """What a layer's requests send and have computed."""
        traffic, shared = self.traffic, self._conditions.shared
        traffic.num_calls += len(requests)
        traffic.client_s += self._dispatch_s
        for request in requests:
            traffic.up_bytes += request.out_bytes
            traffic.down_bytes += request.reply_bytes
            traffic.client_s += request.write_s + request.read_s
            traffic.holders_s += sum(request.parts[name] for name in ON_CORES)
            frames = (request.out_bytes, request.reply_bytes)
            traffic.num_packets += sum(map(num_packets, frames))
            if shared is not None:
                traffic.relay_s += sum(shared.relay_s(num_packets(size)) for size in frames)

    def _add_cold(self, requests: Sequence[_Request], parts: Parts) -> None:
        """What takes longer after the wait that this layer has been."""
        if not self._calibration.after_wait:
            return
        ours = (*ON_CORES, LOSSES, STALLS)
        waited_s = max(sum(time_s for name, time_s in each.parts.items() if name not in ours) for each in requests)
        layer_s, call_s = self._calibration.after_wait_s(waited_s)
        parts.add(TRUNK, layer_s)
        for request in requests:
            request.parts[HOLDER_CALL] += call_s

    def _wait(self, requests: Sequence[_Request], shared_s: float, parts: Parts) -> None:
        """Answers cross the trunk host's downlink one after another, and are read so; the last ends the layer."""
        arrivals, written_s = list[tuple[float, int]](), self._dispatch_s
        for place, request in enumerate(requests):
            written_s += request.write_s
            arrivals.append((written_s + sum(request.parts.values()), place))
        passed_s = read_s = 0.0
        for at_s, place in sorted(arrivals):
            request = requests[place]
            link, first = self.trunk.link, request.peer.link.up
            packet_s = last_packet_bytes(request.reply_bytes) / max(link.down, first) if self._conditions.is_tcp else 0
            begun_s = max(passed_s, at_s - request.reply_bytes / first)
            passed_s = max(begun_s + request.reply_bytes / link.down, at_s + packet_s)
            read_s = max(read_s, passed_s) + request.read_s
        last_at_s, last = max(arrivals)
        for name, time_s in requests[last].parts.items():
            parts.add(name, time_s)
        ours_s = last_at_s - sum(requests[last].parts.values()) + read_s - passed_s
        parts.add(OVERHEAD, ours_s)
        parts.add(DOWNLINK, passed_s - last_at_s)
        parts.add(TRUNK, max(0.0, shared_s - read_s))

    def _wait_on_cores(self, shared: SharedMachine, requests: Sequence[_Request], parts: Parts) -> None:
        """The same where every process is one of the same machine; what the last answer's own steps do not explain is
        waiting for a core. Shared experts are in the layer's own time."""
        ends = finish_s([self._steps(each) for each in requests], shared.cores)
        last = max(range(len(requests)), key=lambda place: ends[place])
        request, own = requests[last], dict(requests[last].parts)
        own[OVERHEAD] = request.write_s + request.read_s + shared.wake_us / 1e6
        own[RELAY] = shared.relay_s(num_packets(request.out_bytes)) + shared.relay_s(num_packets(request.reply_bytes))
        own[DOWNLINK] = last_packet_bytes(request.reply_bytes) / self.trunk.link.down
        rest_s = max(0.0, ends[last] - sum(own.values()))
        others_s = sum(each.reply_bytes for each in requests if each is not request) / self.trunk.link.down
        own[DOWNLINK] += min(rest_s, others_s)
        for name, time_s in own.items():
            parts.add(name, time_s)
        parts.add(OVERHEAD, self._dispatch_s)
        parts.add(SHARED_CORES, max(0.0, ends[last] - sum(own.values())))

    def _steps(self, request: _Request) -> Exchange:
        """An exchange, step by step. A frame's packets take their time on each link, and the trunk host's are shared by
        all; a connection carries one frame at a time."""
        shared, link, parts = self._conditions.shared or ALONE, self.trunk.link, request.parts
        out, back, half_s = request.out_bytes, request.reply_bytes, (parts[RTT] + shared.wake_us / 1e6) / 2
        node_s = sum(parts[name] for name in ON_CORES)
        late_s = sum(parts.get(name, 0.0) for name in (LOSSES, STALLS))
        up_s, down_s = out / link.up, back / link.down
        packet_s = last_packet_bytes(back) / link.down if self._conditions.is_tcp else 0.0
        first_byte_s = max(0.0, parts[HOLDER_UPLINK] + packet_s - down_s)
        there, here = f"{request.peer.name} there", f"{request.peer.name} back"
        return [
            Step(CLIENT, request.write_s),
            Step(there, request.window_s[0], is_on_core=False),
            Step(UPLINK, up_s, request.turns_s, is_on_core=False),
            Step(RELAY, shared.relay_s(num_packets(out)), parts[HOLDER_DOWNLINK] + half_s + late_s),
            Step(request.peer.name, node_s),
            Step(here, request.window_s[1], half_s + first_byte_s, is_on_core=False),
            Step(RELAY, shared.relay_s(num_packets(back))),
            Step(DOWNLINK, down_s, is_on_core=False),
            Step(CLIENT, request.read_s),
        ]


ALONE = SharedMachine(ENDLESS)
"""Nobody shares a machine."""
