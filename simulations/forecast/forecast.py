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
    EXPERTS,
    HOLDER_CALL,
    HOLDER_QUEUE,
    HOLDER_UPLINK,
    OVERHEAD,
    TRUNK,
    UPLINK,
    Choose,
    Conditions,
    LayerClock,
    Parts,
)
from shoal.simulations.forecast.peers import LayerView, Peer, TrunkHost
from shoal.simulations.forecast.routing import Routes
from shoal.simulations.forecast.shape import ModelShape

MIN_PASSES, SAMPLED_ROWS = 4, 24
"""Passes that are drawn for a number of streams: this many, or until so many rows were seen."""

CONTEXT = 1024
"""Tokens in the cache of each stream: about the mean prompt of a recorded conversation (azure_llm_2023_conv: 1,155)."""

ONE_AT_A_TIME = ((TRUNK, OVERHEAD), (UPLINK,), (DOWNLINK,), (EXPERTS, HOLDER_QUEUE, HOLDER_CALL), (HOLDER_UPLINK,))
"""Parts of a chunk's time that no two chunks can spend at once."""

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
    parts = Parts()
    for _ in range(num_passes):
        _pass(swarm, clock, streams, swarm.context, rng, parts)
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
    chunks = list[Parts]()
    for start in range(0, num_tokens, PREFILL_CHUNK):
        rows = min(PREFILL_CHUNK, num_tokens - start)
        chunks.append(Parts())
        _pass(swarm, clock, rows, start + rows // 2, rng, chunks[-1])
    tally.num_calls += clock.traffic.num_calls
    time_s, limit = _overlapped(chunks, swarm.model.num_moe_layers)
    return PrefillForecast(num_tokens, time_s, num_tokens / time_s, limit)


def _overlapped(chunks: Sequence[Parts], num_layers: int) -> tuple[float, str]:
    """Seconds of chunks that overlap, and what they wait for most.

    What one chunk at a time can use (a link's direction, the trunk, the holders) is busy for the sum of all chunks'
    times, but for the rest of the first or last layer. A chunk follows the one ahead of it by one layer's time there at
    least, and begins when the one `PREFILL_AHEAD` before it has ended.
    """
    names = {name for chunk in chunks for name in chunk.seconds}
    totals = {name: sum(chunk.seconds.get(name, 0.0) for chunk in chunks) for name in names}
    longest_s = max(chunk.total_s for chunk in chunks)
    limit = max(totals, key=lambda name: totals[name])
    time_s = max(longest_s, sum(chunk.total_s for chunk in chunks[::PREFILL_AHEAD]))
    for shared in ONE_AT_A_TIME:
        busy_s = sum(totals.get(name, 0.0) for name in shared)
        of_one_s = busy_s / len(chunks)
        bound_s = max(
            busy_s + (longest_s - of_one_s) / num_layers, longest_s + (len(chunks) - 1) * of_one_s / num_layers
        )
        if bound_s > time_s:
            time_s, limit = bound_s, max(shared, key=lambda name: totals.get(name, 0.0))
    return time_s, limit


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
