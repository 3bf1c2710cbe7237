"""Small swarms of made-up machines, for tests of the forecast."""

from collections.abc import Sequence

import numpy as np

from shoal.client.trunk.linear_maker import TrunkFormat
from shoal.protocol.ids import ExpertId, PeerId
from shoal.protocol.messages import WeightFormat
from shoal.simulations.forecast.compute import Calibration, Rates, shipped_calibration
from shoal.simulations.forecast.deepseek_v3 import DEEPSEEK_V3
from shoal.simulations.forecast.forecast import Swarm
from shoal.simulations.forecast.layer_time import Conditions
from shoal.simulations.forecast.peers import LayerView, Link, Peer, TrunkHost
from shoal.simulations.forecast.routing import draw_routes
from shoal.simulations.forecast.shape import ModelShape, model_shape

ENDLESS = 1e30
FREE = Rates(ENDLESS, ENDLESS, layer_s=0.0)
"""A machine that computes in no time."""

WIDE = Link(ENDLESS, ENDLESS)


def v3() -> ModelShape:
    return model_shape(DEEPSEEK_V3, "DeepSeek-V3.1", WeightFormat.INT4_G128, TrunkFormat.INT4_G128)


def free_calibration() -> Calibration:
    """Nothing of ours costs anything."""
    shipped = shipped_calibration()
    return Calibration("made up", 1.0, 1.0, shipped.expert_ms, shipped.expert_bytes, 0.0, 0.0, 0.0)


def parts_swarm(peers: Sequence[Peer], trunk: TrunkHost | None = None, context: int = 0) -> Swarm:
    """Every layer is dealt to all the peers in equal parts."""
    model = v3()
    bounds = np.linspace(0, model.router.num_experts, len(peers) + 1).astype(int)
    held = {peer.name: frozenset(map(ExpertId, range(bounds[i], bounds[i + 1]))) for i, peer in enumerate(peers)}
    view = LayerView(held, {peer.name: peer.rtt_s for peer in peers})
    return Swarm(
        model,
        trunk or TrunkHost(WIDE, FREE, 10**12),
        peers,
        [view] * model.num_moe_layers,
        draw_routes(model.router, model.num_moe_layers, np.random.default_rng(0), pool=64),
        free_calibration(),
        Conditions(is_tcp=False),
        context,
    )


def peer(number: int, rtt_s: float = 0.0, link: Link = WIDE, rates: Rates = FREE, call_s: float = 0.0) -> Peer:
    return Peer(PeerId(f"peer-{number}"), rtt_s, link, rates, 16 * 10**9, call_s)
