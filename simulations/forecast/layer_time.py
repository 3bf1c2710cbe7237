"""How long one layer of one pass takes: the trunk's part, then the slowest holder.

A request leaves when the ones before it have been written, crosses the trunk host's uplink, half a round trip, waits
and is computed, and comes back through the holder's uplink and the trunk host's downlink, which its siblings share. The
layer waits for the last; what that one's time was made of is what the layer's time was made of.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from shoal.client.routing.choose import Held, Plan
from shoal.protocol.ids import ExpertId, PeerId
from shoal.simulations.forecast.compute import Calibration, Times, expert_times, shared_expert_times, trunk_times
from shoal.simulations.forecast.peers import LayerView, Peer, TrunkHost
from shoal.simulations.forecast.routing import Choices, Generator
from shoal.simulations.forecast.shape import ModelShape

KIB = 1024
HEDGE_QUANTILE_FACTOR = 1.25
"""A second holder is asked after the first's 95th percentile: this many times its usual time."""


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
STALLS, DEATHS = "stalls", "deaths"
HOLDER_UPLINK, HOLDER_DOWNLINK = "holders' uplink", "holders' downlink"
HOLDER_QUEUE, HOLDER_CALL = "holders' queue", "holders' own time"


@dataclass(slots=True)
class Traffic:
    """What crossed the trunk host's link, and how often holders were asked."""

    num_calls: int = 0
    up_bytes: int = 0
    down_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Request:
    """One request on its way, and where its time went."""

    at_s: float
    """When its answer's last byte has left the holder and reached the trunk host's link."""
    reply_bytes: int
    parts: dict[str, float]


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
        self._conditions = conditions
        self._choose = choose
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
        chosen = np.zeros((len(choices), self.model.router.num_experts), dtype=bool)
        np.put_along_axis(chosen, choices, True, axis=1)
        needed = [ExpertId(expert) for expert in np.flatnonzero(chosen.any(axis=0)).tolist()]
        plan = self._choose(needed, view.held, view.cost)
        requests, sent_bytes, written_s = list[_Request](), 0, self._dispatch_s
        for name, share in plan.shares.items():
            of_holder = chosen[:, share]
            rows, num_tokens = of_holder.sum(axis=0), int(of_holder.any(axis=1).sum())
            out = self.model.request_bytes(num_tokens, int(rows.sum()))
            back = self.model.reply_bytes(num_tokens)
            ours_s = self._exchange_s + self._kib_s * (out + back) / KIB
            sent_bytes, written_s = sent_bytes + out, written_s + ours_s / 4
            compute_s = float(self._expert_s[name][rows].sum())
            requests.append(self._request(self._peers[name], out, back, sent_bytes, written_s, ours_s, compute_s, rng))
            self.traffic.num_calls += 1
            self.traffic.up_bytes += out
            self.traffic.down_bytes += back
        self._wait(requests, float(self._shared_s[len(choices)]), parts)

    def _request(
        self,
        peer: Peer,
        out: int,
        back: int,
        sent_bytes: int,
        written_s: float,
        ours_s: float,
        compute_s: float,
        rng: Generator,
    ) -> _Request:
        """One exchange. sent_bytes, written_s: of this layer up to and with this request."""
        jitter = self._conditions.jitter
        ways = 1.0 + (jitter * rng.random() + jitter * rng.random()) / 2 if jitter else 1.0
        parts = {
            OVERHEAD: written_s + ours_s / 2,
            UPLINK: sent_bytes / self.trunk.link.up,
            HOLDER_DOWNLINK: max(0.0, out / peer.link.down - out / self.trunk.link.up),
            RTT: peer.rtt_s * ways,
            HOLDER_QUEUE: compute_s * peer.load / (2 * (1 - peer.load)),  # M/D/1
            EXPERTS: compute_s,
            HOLDER_CALL: peer.call_s,
            HOLDER_UPLINK: back / peer.link.up,
        }
        usual_s = sum(parts.values())
        if self._conditions.stall_share and rng.random() < self._conditions.stall_share:
            parts[STALLS] = self._stall_s(usual_s)
            usual_s += parts[STALLS]
        return _Request(usual_s, back, parts)

    def _stall_s(self, usual_s: float) -> float:
        """Extra time of a stalled request: a replica answers `usual_s` after it was asked."""
        stalled_s = usual_s * (self._conditions.stall_factor - 1)
        return min(stalled_s, usual_s * HEDGE_QUANTILE_FACTOR) if self._conditions.is_hedged else stalled_s

    def _wait(self, requests: list[_Request], shared_s: float, parts: Parts) -> None:
        """Answers come through the trunk host's downlink one after another; the last one ends the layer."""
        end_s, ours_s, last = 0.0, self._exchange_s / 4, requests[0]
        for request in sorted(requests, key=lambda each: each.at_s):
            last = request
            end_s = max(end_s + request.reply_bytes / self.trunk.link.down, request.at_s)
        for name, time_s in last.parts.items():
            parts.add(name, time_s)
        parts.add(DOWNLINK, end_s - last.at_s)
        parts.add(OVERHEAD, ours_s)
        parts.add(TRUNK, max(0.0, shared_s - end_s - ours_s))
