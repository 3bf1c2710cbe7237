"""What a swarm would give: tokens per second of one stream and of many, a prompt's time, data, memory, and the limit.

A pass is the trunk plus its MoE layers one after another (`layer_time.py`), for as many rows as streams decode together
(`client/engine/scheduler.py` takes one token of each). Passes are drawn, timed and averaged.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shoal.client.engine.engine_settings import PREFILL_AHEAD, PREFILL_CHUNK
from shoal.client.routing.choose import choose
from shoal.simulations.forecast.compute import Calibration, context_s
from shoal.simulations.forecast.layer_time import (
    DEATHS,
    DOWNLINK,
    SHARED_CORES,
    TRUNK,
    UPLINK,
    Choose,
    Conditions,
    LayerClock,
    MeanTraffic,
    Parts,
)
from shoal.simulations.forecast.peers import LayerView, Peer, TrunkHost
from shoal.simulations.forecast.routing import Routes
from shoal.simulations.forecast.schedule import ENDLESS, LayerWork, wavefront_s
from shoal.simulations.forecast.shape import ModelShape

MIN_PASSES, SAMPLED_ROWS = 4, 24
"""Passes that are drawn for a number of streams: this many, or until so many rows were seen."""

TRAFFIC_PASSES = 16
"""That a mean of traffic is taken of."""

CONTEXT = 1024
"""Tokens in the cache of each stream: about the mean prompt of a recorded conversation (azure_llm_2023_conv: 1,155)."""

MOSTLY = 0.6
"""Of a prompt's time: what is busy for so long is its limit."""

SILENT_DEATH_RTTS = 1.23
"""What a token pays for a holder that goes silent (`shoal simulate recovery`, median); a reset costs 0.1."""


@dataclass(frozen=True, slots=True)
class StreamsForecast:
    """Some streams that decode at a time."""

    streams: int
    tokens_per_s_each: float
    tokens_per_s: float
    """In all."""
    token_ms: float
    limit: str
    """What takes most of the time."""
    shares: dict[str, float]
    """Of the time, by name; they add up to 1."""
    holders_per_layer: float
    up_bytes_per_token: int
    """Through the trunk host's link."""
    down_bytes_per_token: int


@dataclass(frozen=True, slots=True)
class PrefillForecast:
    """A prompt, alone."""

    tokens: int
    time_s: float
    tokens_per_s: float
    limit: str


@dataclass(frozen=True, slots=True)
class Swarm:
    """All that a forecast is made from."""

    model: ModelShape
    trunk: TrunkHost
    peers: Sequence[Peer]
    layers: Sequence[LayerView]
    routes: Routes
    calibration: Calibration
    conditions: Conditions
    context: int = CONTEXT
    deaths_per_peer_s: float = 0.0
    """How often a holder leaves without a word."""
    choose: Choose = choose
    """Whom the client asks: its own function, or another to try."""

    def clock(self) -> LayerClock:
        """A clock whose traffic is counted from here on."""
        return LayerClock(self.model, self.trunk, self.peers, self.calibration, self.conditions, self.choose)


@dataclass(slots=True)
class Tally:
    """How much was simulated."""

    num_calls: int = 0


def forecast_streams(swarm: Swarm, streams: int, seed: int, tally: Tally) -> StreamsForecast:
    """Average passes of `streams` rows."""
    rng, clock = np.random.default_rng((seed, streams)), swarm.clock()
    num_passes = max(MIN_PASSES, -(-SAMPLED_ROWS // streams))
    clock.windows.is_grown, own_s = True, streams * swarm.calibration.stream_us / 1e6
    parts = Parts()
    for _ in range(num_passes):
        _pass(swarm, clock, streams, swarm.context, rng, parts)
        parts.add(TRUNK, own_s)
    _add_deaths(swarm, clock, parts)
    tally.num_calls += clock.traffic.num_calls
    pass_s, num_tokens = parts.total_s / num_passes, num_passes * streams
    shares = {name: time_s / parts.total_s for name, time_s in parts.seconds.items()}
    return StreamsForecast(
        streams=streams,
        tokens_per_s_each=1 / pass_s,
        tokens_per_s=streams / pass_s,
        token_ms=1000 * pass_s,
        limit=max(shares, key=lambda name: shares[name]),
        shares=shares,
        holders_per_layer=clock.traffic.num_calls / num_passes / swarm.model.num_moe_layers,
        up_bytes_per_token=clock.traffic.up_bytes // num_tokens,
        down_bytes_per_token=clock.traffic.down_bytes // num_tokens,
    )


def forecast_prefill(swarm: Swarm, num_tokens: int, seed: int, tally: Tally) -> PrefillForecast:
    """A prompt in chunks of `PREFILL_CHUNK`, up to `PREFILL_AHEAD` of them under way (docs/adr/0028)."""
    rng, clock = np.random.default_rng((seed, num_tokens)), swarm.clock()
    chunks, parts = list[list[LayerWork]](), list[Parts]()
    for start in range(0, num_tokens, PREFILL_CHUNK):
        parts.append(Parts())
        chunks.append(_chunk(swarm, clock, start, min(PREFILL_CHUNK, num_tokens - start), rng, parts[-1]))
    tally.num_calls += clock.traffic.num_calls
    end_s = swarm.calibration.stream_us / 1e6
    shared = swarm.conditions.shared
    time_s = wavefront_s(chunks, PREFILL_AHEAD, ENDLESS if shared is None else shared.cores) + end_s
    return PrefillForecast(num_tokens, time_s, num_tokens / time_s, _limit(swarm, clock, parts, time_s))


def _chunk(
    swarm: Swarm, clock: LayerClock, start: int, rows: int, rng: np.random.Generator, parts: Parts
) -> list[LayerWork]:
    """A chunk of a prompt as work: what its trunk computes is spread over the MoE layers."""
    trunk_s = clock.trunk_s(rows) + context_s(swarm.trunk.rates, swarm.model, rows, start + rows // 2)
    layer_s = (trunk_s + rows * swarm.calibration.row_us / 1e6) / len(swarm.layers)
    return [
        clock.chunk_layer(view, swarm.routes.draw(layer, rows, rng), rng, parts, layer_s)
        for layer, view in enumerate(swarm.layers)
    ]


def _limit(swarm: Swarm, clock: LayerClock, parts: Sequence[Parts], time_s: float) -> str:
    """What is busy for most of a prompt's time; if nothing is for `MOSTLY` of it, what a chunk waits for most."""
    busy = _busy(swarm, clock, sum(each.seconds[TRUNK] for each in parts))
    busiest = max(busy, key=lambda name: busy[name])
    longest = max(parts, key=lambda each: each.total_s).seconds
    return busiest if busy[busiest] >= MOSTLY * time_s else max(longest, key=lambda name: longest[name])


def pass_traffic(swarm: Swarm, num_rows: int, seed: int) -> MeanTraffic:
    """What a pass sends: mean of some."""
    rng, clock = np.random.default_rng((seed, num_rows)), swarm.clock()
    for _ in range(TRAFFIC_PASSES):
        _pass(swarm, clock, num_rows, 0, rng, Parts())
    return clock.traffic.per(TRAFFIC_PASSES)


def _busy(swarm: Swarm, clock: LayerClock, trunk_s: float) -> dict[str, float]:
    """Seconds for which there is work for whatever can do one thing at a time."""
    shared, traffic, link = swarm.conditions.shared, clock.traffic, swarm.trunk.link
    busy = {TRUNK: trunk_s, UPLINK: traffic.up_bytes / link.up, DOWNLINK: traffic.down_bytes / link.down}
    if shared is not None:
        on_cores_s = trunk_s + traffic.client_s + traffic.relay_s + traffic.holders_s
        busy[SHARED_CORES] = on_cores_s / shared.cores
    return busy


def _pass(swarm: Swarm, clock: LayerClock, num_rows: int, context: int, rng: np.random.Generator, parts: Parts) -> None:
    parts.add(TRUNK, clock.trunk_s(num_rows) + context_s(swarm.trunk.rates, swarm.model, num_rows, context))
    for layer, view in enumerate(swarm.layers):
        clock.moe_layer(view, swarm.routes.draw(layer, num_rows, rng), rng, parts)


def _add_deaths(swarm: Swarm, clock: LayerClock, parts: Parts) -> None:
    """Holders that vanish while they are asked."""
    num_asked = clock.traffic.num_calls / max(1, len(swarm.layers))
    mean_rtt_s = float(np.mean([peer.rtt_s for peer in swarm.peers]))
    per_s = swarm.deaths_per_peer_s * min(len(swarm.peers), num_asked)
    parts.add(DEATHS, parts.total_s * per_s * SILENT_DEATH_RTTS * mean_rtt_s)
