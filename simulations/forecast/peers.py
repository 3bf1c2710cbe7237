"""Machines of a swarm as a forecast sees them: memory, limits, links, what they hold, and whom a client would ask."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shoal.protocol.errors import InvalidRequest
from shoal.protocol.ids import ExpertId, PeerId
from shoal.simulations.forecast.compute import Rates

Counts = npt.NDArray[np.int64]
"""Replicas of every expert: i64[L, E], L counting MoE layers."""


Held = npt.NDArray[np.int64]
"""What a node holds: places of experts in [L * E], ascending."""


@dataclass(frozen=True, slots=True)
class Link:
    """A machine's access to the network, in bytes per second."""

    up: float
    down: float


@dataclass(frozen=True, slots=True)
class Peer:
    """A machine that holds experts."""

    name: PeerId
    rtt_s: float
    """To the trunk host."""
    link: Link
    rates: Rates
    memory_bytes: int
    """For experts."""
    call_s: float = 0.0
    """What every request takes there beside its experts."""
    load: float = 0.0
    """Share of time for which it computes for others."""


@dataclass(frozen=True, slots=True)
class TrunkHost:
    """Who runs the trunk."""

    link: Link
    rates: Rates
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class LayerView:
    """Whom the trunk host may ask for a layer: the nearest `replicas` holders of every expert."""

    held: dict[PeerId, frozenset[ExpertId]]
    cost: dict[PeerId, float]


def views(peers: Sequence[Peer], holdings: Sequence[Held], counts: Counts, replicas: int = 2) -> list[LayerView]:
    """The layers as the client sees them once it has chosen whom to keep a connection to.

    Raises:
        InvalidRequest: nobody holds some expert.
    """
    if int(counts.min()) < 1:
        layer, expert = (int(each) for each in np.unravel_index(int(counts.argmin()), counts.shape))
        raise InvalidRequest(
            f"nobody holds expert {expert} of MoE layer {layer}: {int((counts < 1).sum())} are missing"
        )
    known, num_experts = np.zeros(counts.size, np.int64), counts.shape[1]
    layers = [LayerView({}, {}) for _ in range(counts.shape[0])]
    for place in sorted(range(len(peers)), key=lambda each: peers[each].rtt_s):
        if int(known.min()) >= replicas:
            break
        peer, held = peers[place], holdings[place]
        wanted = set((held[known[held] < replicas] // num_experts).tolist())
        for layer in wanted:
            experts = held[held // num_experts == layer]
            known[experts] += 1
            layers[layer].held[peer.name] = frozenset(map(ExpertId, (experts % num_experts).tolist()))
            layers[layer].cost[peer.name] = peer.rtt_s
    return layers
