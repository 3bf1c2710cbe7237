"""The forecast's word on a real network: the cost model's, and that of `shoal plan`; both know nothing of the runs.

The cost model is told what the demonstration model's tokens choose (recorded of other answers). The planner is told
what it is told of any swarm that runs: machines, round trips, links, who holds what; it draws what tokens choose.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shoal.client.routing.choose import choose
from shoal.protocol.ids import ExpertId, PeerId
from shoal.simulations.forecast.compute import Calibration
from shoal.simulations.forecast.forecast import (
    PrefillForecast,
    StreamsForecast,
    Swarm,
    Tally,
    forecast_prefill,
    forecast_streams,
)
from shoal.simulations.forecast.layer_time import Conditions
from shoal.simulations.forecast.machines_file import UNLIMITED
from shoal.simulations.forecast.peers import Held, LayerView, Link, Peer, TrunkHost
from shoal.simulations.forecast.plan import PlanSettings, make_plan
from shoal.simulations.forecast.real.fit import Fitted
from shoal.simulations.forecast.real.networks import BYTES_PER_MBIT, RealSetting, Shape
from shoal.simulations.forecast.routing import Routes
from shoal.simulations.forecast.shape import ModelShape
from shoal.simulations.local import holdings

CONTEXT = 40
"""Tokens in the cache of a stream that is measured: 8 of the prompt, and on average half of the answer's 64."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """What was said of one setting, and what limits it."""

    seconds: float
    """Of a pass, or to the first token."""
    limit: str


@dataclass(frozen=True, slots=True)
class Model:
    """The demonstration model as forecasts see it."""

    shape: ModelShape
    routes: Routes


def swarm_without_network(model: Model, nodes: int, fitted: Fitted) -> Swarm:
    """Of the calibration: nothing but this machine."""
    return _swarm(model, RealSetting(Shape(nodes), 0.0, 0.0), fitted)


def predict(model: Model, setting: RealSetting, fitted: Fitted) -> Predicted:
    """By the cost model."""
    swarm = _swarm(model, setting, fitted)
    if setting.prompt:
        return _of_prompt(forecast_prefill(swarm, setting.prompt, 0, Tally()))
    return _of_streams(forecast_streams(swarm, setting.streams, 0, Tally()))


def plan(model: Model, setting: RealSetting, fitted: Fitted) -> Predicted:
    """By `shoal plan`."""
    peers, trunk = _machines(model.shape, setting, fitted.calibration)
    report = make_plan(
        PlanSettings(
            model.shape,
            trunk,
            peers,
            fitted.calibration,
            (setting.streams,),
            _held(model.shape, setting.shape),
            conditions=_conditions(setting, fitted),
            prompt=setting.prompt or 1,
        )
    )
    if setting.prompt:
        return _of_prompt(report.prefill)
    return _of_streams(report.streams[0])


def _of_streams(said: StreamsForecast) -> Predicted:
    return Predicted(said.token_ms / 1000, said.limit)


def _of_prompt(said: PrefillForecast | None) -> Predicted:
    if said is None:
        raise ValueError("every expert of these swarms has a holder, and the trunk a place")
    return Predicted(said.time_s, said.limit)


def _swarm(model: Model, setting: RealSetting, fitted: Fitted) -> Swarm:
    peers, trunk = _machines(model.shape, setting, fitted.calibration)
    held = {peer.name: part for peer, part in zip(peers, _parts(model.shape, setting.shape), strict=True)}
    view = LayerView(held, {peer.name: peer.rtt_s for peer in peers})
    layers = [view] * model.shape.num_moe_layers
    conditions = _conditions(setting, fitted)
    return Swarm(
        model.shape, trunk, peers, layers, model.routes, fitted.calibration, conditions, CONTEXT, choose=choose
    )


def _conditions(setting: RealSetting, fitted: Fitted) -> Conditions:
    return Conditions(loss=setting.loss, shared=fitted.shared)


def _machines(model: ModelShape, setting: RealSetting, calibration: Calibration) -> tuple[list[Peer], TrunkHost]:
    rate, rates = setting.mbit_per_s * BYTES_PER_MBIT or UNLIMITED, calibration.rates()
    link = Link(rate, rate)
    names = [PeerId(f"node-{place}") for place in range(setting.shape.nodes)]
    peers = [Peer(name, setting.rtt_ms / 1000, link, rates, model.experts_bytes) for name in names]
    return peers, TrunkHost(link, rates, 2 * (model.trunk.total + model.experts_bytes))


def _parts(model: ModelShape, shape: Shape) -> list[frozenset[ExpertId]]:
    """What each node holds of every layer: what the local swarm gives it."""
    words = holdings(shape.nodes, shape.replicas, model.router.num_experts)
    bounds = [tuple(map(int, word.split("-"))) for word in words]
    return [frozenset(map(ExpertId, range(low, high + 1))) for low, high in bounds]


def _held(model: ModelShape, shape: Shape) -> Sequence[Held]:
    size, layers = model.router.num_experts, range(model.num_moe_layers)
    return [
        np.array([layer * size + expert for layer in layers for expert in sorted(part)], dtype=np.int64)
        for part in _parts(model, shape)
    ]
