"""`shoal simulate --virtual`: a scenario's machines are drawn and choose experts, passes are timed, hours go by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import process_time
from typing import TypeVar

import numpy as np

from shoal.node.holdings.nearness import reads_s
from shoal.node.holdings.placement import Around, Layout
from shoal.protocol.errors import InvalidRequest
from shoal.simulations.forecast.churn import CoverageAt, Population, coverage_over_time, deaths_per_s
from shoal.simulations.forecast.compute import Calibration
from shoal.simulations.forecast.deepseek_v3 import DEEPSEEK_V3
from shoal.simulations.forecast.forecast import StreamsForecast, Swarm, Tally, forecast_prefill, forecast_streams
from shoal.simulations.forecast.layer_pipeline import forecast_pipeline
from shoal.simulations.forecast.layer_time import Conditions
from shoal.simulations.forecast.peers import Counts, Held, LayerView, views
from shoal.simulations.forecast.placement import Placement, Progress
from shoal.simulations.forecast.report import Data, Memory, SimulationReport, Speed
from shoal.simulations.forecast.routing import draw_routes
from shoal.simulations.forecast.scenarios import Machines, Scenario, draw_machines
from shoal.simulations.forecast.shape import ModelShape, model_shape
from shoal.simulations.forecast.what_if import what_ifs

STREAMS = (1, 8, 32)
PROMPTS = (256, 2000)
GB = 1e9

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class SimulationSettings:
    """What is asked."""

    scenario: Scenario
    seed: int = 0
    hours: int = 24
    replicas: int = 2
    """Holders of each expert that the client keeps connections to."""


@dataclass(frozen=True, slots=True)
class _Stage:
    """A scenario with everything in its place."""

    settings: SimulationSettings
    model: ModelShape
    machines: Machines
    placement: Placement
    capacities: list[int]
    """Experts that fit, by machine."""
    around: list[Around]
    """What each machine finds of its network."""
    counts: Counts
    holdings: list[Held]
    rng: np.random.Generator

    @property
    def held(self) -> list[int]:
        """Experts by machine."""
        return [len(held) for held in self.holdings]

    @property
    def load_s(self) -> list[float]:
        """Seconds to fetch them, by machine."""
        return [
            count * self.model.expert_bytes / peer.link.down
            for count, peer in zip(self.held, self.machines.peers, strict=True)
        ]


def simulate(settings: SimulationSettings, calibration: Calibration, progress: Progress) -> SimulationReport:
    """Answer what a scenario's swarm would give.

    Raises:
        InvalidRequest: the trunk does not fit its host.
    """
    stage = _set(settings, progress)
    missing, tally, started = int((stage.counts < 1).sum()), Tally(), process_time()
    swarm = None if missing else _swarm(stage, calibration)
    streams = _each(STREAMS, swarm, lambda s, n: forecast_streams(s, n, settings.seed, tally), "passes", progress)
    prefill = _each(PROMPTS, swarm, lambda s, n: forecast_prefill(s, n, settings.seed, tally), "prompts", progress)
    what_if = what_ifs(swarm, *_other_layout(stage), streams[::2], settings.seed, tally) if swarm else ()
    cpu_s = process_time() - started
    return SimulationReport(
        scenario=settings.scenario.name,
        about=settings.scenario.about,
        model=stage.model.name,
        weight_format=stage.model.weight_format.name.lower(),
        trunk_format=stage.model.trunk_format.value,
        seed=settings.seed,
        nodes=len(stage.machines.peers),
        calibration=calibration.source,
        rtt_ms_median=float(np.median([peer.rtt_s for peer in stage.machines.peers])) * 1000,
        missing_experts=missing,
        memory=_memory(stage),
        streams=streams,
        prefill=prefill,
        what_if=what_if,
        data=_data(stage, streams[0]) if streams else None,
        pipeline=None if swarm is None else forecast_pipeline(swarm, STREAMS, settings.seed, stage.machines.between_s),
        coverage=tuple(_coverage(stage, progress)),
        speed=Speed(tally.num_calls, cpu_s, tally.num_calls / cpu_s if cpu_s else 0.0),
    )


def _set(settings: SimulationSettings, progress: Progress) -> _Stage:
    """Draw the machines and let them choose, one after another."""
    scenario, rng = settings.scenario, np.random.default_rng((settings.seed, 1))
    model = model_shape(DEEPSEEK_V3, "DeepSeek-V3.1", scenario.weight_format, scenario.trunk_format)
    machines = draw_machines(scenario, settings.seed)
    if model.trunk.total > machines.trunk.memory_bytes:
        raise InvalidRequest(f"the trunk takes {model.trunk.total / GB:.1f} GB, more than its host has")
    placement = Placement(model.router, model.num_moe_layers)
    counts = placement.nobody()
    capacities = [min(peer.memory_bytes // model.expert_bytes, model.num_experts) for peer in machines.peers]
    around = machines.around(reads_s(model.router, model.expert_bytes))
    holdings = placement.fill(counts, capacities, [peer.name for peer in machines.peers], progress, around)
    return _Stage(settings, model, machines, placement, capacities, around, counts, holdings, rng)


def _swarm(stage: _Stage, calibration: Calibration) -> Swarm:
    scenario, model = stage.settings.scenario, stage.model
    return Swarm(
        model,
        stage.machines.trunk,
        stage.machines.peers,
        views(stage.machines.peers, stage.holdings, stage.counts, stage.settings.replicas),
        draw_routes(model.router, model.num_moe_layers, np.random.default_rng((stage.settings.seed, 2))),
        calibration,
        Conditions(jitter=scenario.jitter, stall_share=scenario.stall_share),
        deaths_per_peer_s=deaths_per_s(scenario.lifetimes),
    )


def _other_layout(stage: _Stage) -> tuple[Layout, list[LayerView]]:
    """Whom the client would ask if nodes held groups of many layers where most hold groups of few, or the other way."""
    spread = sum(each.layout is Layout.MANY_LAYERS for each in stage.around)
    other = Layout.FEW_LAYERS if 2 * spread > len(stage.around) else Layout.MANY_LAYERS
    counts, peers = stage.placement.nobody(), stage.machines.peers
    around = [replace(each, layout=other) for each in stage.around]
    names = [peer.name for peer in peers]
    holdings = stage.placement.fill(counts, stage.capacities, names, lambda what, done, total: None, around)
    return other, views(peers, holdings, counts, stage.settings.replicas)


def _each(
    sizes: Sequence[int],
    swarm: Swarm | None,
    forecast: Callable[[Swarm, int], Result],
    what: str,
    progress: Progress,
) -> tuple[Result, ...]:
    """A forecast for each size; none of a swarm that cannot answer."""
    results: list[Result] = []
    for done, size in enumerate(sizes if swarm else (), start=1):
        if swarm is not None:
            results.append(forecast(swarm, size))
        progress(what, done, len(sizes))
    return tuple(results)


def _memory(stage: _Stage) -> Memory:
    model, sizes = stage.model, [count * stage.model.expert_bytes for count in stage.held]
    offered = sum(peer.memory_bytes for peer in stage.machines.peers)
    return Memory(
        experts_gb=model.experts_bytes / GB,
        trunk_gb=model.trunk.total / GB,
        offered_gb=offered / GB,
        copies=sum(stage.held) / model.num_experts,
        bytes_per_node_median=int(np.median(sizes)),
        bytes_per_node_most=max(sizes),
        kv_mb_per_1000_tokens=model.kv_bytes_per_token / 1000,
    )


def _data(stage: _Stage, single: StreamsForecast) -> Data:
    return Data(
        trunk_up_mb_per_1000_tokens=single.up_bytes_per_token / 1000,
        trunk_down_mb_per_1000_tokens=single.down_bytes_per_token / 1000,
        node_download_gb_median=float(np.median(stage.held)) * stage.model.expert_bytes / GB,
        node_download_hours_median=float(np.median(stage.load_s)) / 3600,
    )


def _coverage(stage: _Stage, progress: Progress) -> list[CoverageAt]:
    settings = stage.settings
    return coverage_over_time(
        stage.counts.copy(),
        stage.holdings,
        Population(stage.capacities, stage.load_s, settings.scenario.lifetimes, stage.around),
        stage.placement,
        settings.hours,
        stage.rng,
        lambda hour: progress("hours", hour, settings.hours),
    )
