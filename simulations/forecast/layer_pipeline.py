"""The other way to share a model, on the same machines: each holds whole layers and a token goes through them in turn.

So Petals does it. A machine computes all experts of its layers itself, one after another; a token crosses as many links
as there are machines in the chain. Ours per hop is charged as for an exchange of experts, which is kind: Petals took
7.5 ms per hop on loopback (measured).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from shoal.protocol.ids import PeerId
from shoal.simulations.forecast.compute import Rates, Times, context_s, expert_times, trunk_times
from shoal.simulations.forecast.forecast import Swarm
from shoal.simulations.forecast.peers import Peer
from shoal.simulations.forecast.shape import BF16_BYTES

PETALS_HOP_S = 0.0075
"""Of Petals itself, 2024-08, Mixtral-small, loopback, beside the link (docs/SIMULATE.md)."""

Between = Callable[[Peer, Peer], float]
"""Round trip between two machines in seconds."""


@dataclass(frozen=True, slots=True)
class PipelineForecast:
    """What a chain of whole layers would give. `hops` 0: it cannot be built, and `reason` says why."""

    reason: str
    hops: int = 0
    machines: int = 0
    """In all chains together."""
    chains: int = 0
    """As many as the machines have room for; streams are dealt to them."""
    tokens_per_s: dict[int, float] | None = None
    """In all, by streams."""
    tokens_per_s_petals: dict[int, float] | None = None
    """The same with Petals' measured cost of a hop."""


def half_way_round(first: Peer, second: Peer) -> float:
    """A bound where only round trips to the trunk host are known: by way of it."""
    return first.rtt_s + second.rtt_s


def forecast_pipeline(swarm: Swarm, streams: Sequence[int], seed: int, between: Between) -> PipelineForecast:
    """Chain the machines that hold most layers, then those that are next to each other."""
    model = swarm.model
    room = [peer.memory_bytes // model.layer_bytes for peer in swarm.peers]
    if not any(room):
        return PipelineForecast(f"no machine has room for a layer, {model.layer_bytes / 1e9:.1f} GB")
    if sum(room) < model.num_layers:
        return PipelineForecast(f"room for {sum(room)} of {model.num_layers} layers")
    chain = _chain(swarm.peers, room, model.num_layers)
    order = _route([peer for peer, _ in chain], between)
    held = {peer.name: count for peer, count in chain}
    distinct = _distinct_experts(swarm, max(streams), seed)
    chains = sum(room) // model.num_layers

    def in_all(count: int, hop_s: float) -> float:
        per_chain = -(-count // chains)
        rows = -(-per_chain // len(order))  # each machine works on its part of the streams while others do on theirs
        return count / _token_s(swarm, order, held, rows, distinct, between, hop_s) if rows else 0.0

    ours_s = swarm.calibration.exchange_us / 1e6
    return PipelineForecast(
        reason="",
        hops=len(order) + 1,
        machines=len(order) * chains,
        chains=chains,
        tokens_per_s={count: in_all(count, ours_s) for count in streams},
        tokens_per_s_petals={count: in_all(count, PETALS_HOP_S) for count in streams},
    )


def _chain(peers: Sequence[Peer], room: Sequence[int], num_layers: int) -> list[tuple[Peer, int]]:
    """Fewest machines: most room first, the nearer among equals; with the layers that each takes."""
    taken, left = list[tuple[Peer, int]](), num_layers
    for place in sorted(range(len(peers)), key=lambda each: (-room[each], peers[each].rtt_s)):
        if left <= 0:
            break
        taken.append((peers[place], min(room[place], left)))
        left -= room[place]
    return taken


def _route(machines: Sequence[Peer], between: Between) -> list[Peer]:
    """The nearest to the trunk host, then always the nearest to the one before."""
    left = sorted(machines, key=lambda peer: peer.rtt_s)
    order = [left.pop(0)]
    while left:
        order.append(left.pop(min(range(len(left)), key=lambda place: between(order[-1], left[place]))))
    return order


def _token_s(
    swarm: Swarm,
    order: Sequence[Peer],
    held: dict[PeerId, int],
    rows: int,
    distinct: Sequence[float],
    between: Between,
    hop_s: float,
) -> float:
    """Seconds of a token of `rows` streams that go together."""
    model = swarm.model
    ways_s = (order[0].rtt_s + order[-1].rtt_s + sum(map(between, order, order[1:]))) / 2
    size = rows * model.hidden * BF16_BYTES
    links_s = size / swarm.trunk.link.up + sum(size / peer.link.up for peer in order)
    layers = {rates: _layer_s(swarm, rates, rows, distinct[rows]) for rates in {peer.rates for peer in order}}
    compute_s = sum(held[peer.name] * layers[peer.rates] for peer in order)
    return ways_s + links_s + (len(order) + 1) * hop_s + compute_s


def _layer_s(swarm: Swarm, rates: Rates, rows: int, distinct: float) -> float:
    """A whole layer on one machine: its part of the trunk, shared experts, then the routed ones in turn."""
    model, calibration = swarm.model, swarm.calibration
    experts_s = _at(expert_times(calibration, rates, model), rows * model.router.top_k / distinct) * distinct
    trunk_s = float(trunk_times(calibration, rates, model)[rows]) + context_s(rates, model, rows, swarm.context)
    shared_s = model.trunk.shared_experts / model.num_moe_layers / rates.read_bytes_per_s
    return trunk_s / model.num_layers + shared_s + experts_s


def _at(times: Times, rows: float) -> float:
    return float(np.interp(rows, np.arange(len(times)), times))


def _distinct_experts(swarm: Swarm, max_rows: int, seed: int) -> list[float]:
    """How many experts of a layer some tokens choose, by number of tokens: mean over the layers."""
    rng, num_layers = np.random.default_rng((seed, 0)), len(swarm.layers)
    sums = np.zeros(max_rows + 1)
    for layer in range(num_layers):
        seen: set[int] = set()
        for row, chosen in enumerate(swarm.routes.draw(layer, max_rows, rng).tolist(), start=1):
            seen.update(chosen)
            sums[row] += len(seen)
    return [float(each) for each in sums / num_layers]
