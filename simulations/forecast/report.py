"""What `shoal simulate --virtual` says, as values: its JSON is these, its schema is made from them."""

from dataclasses import dataclass

from shoal.simulations.forecast.churn import CoverageAt
from shoal.simulations.forecast.forecast import PrefillForecast, StreamsForecast
from shoal.simulations.forecast.layer_pipeline import PipelineForecast
from shoal.simulations.forecast.what_if import WhatIf


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of the model and of the machines."""

    experts_gb: float
    """One copy of all experts."""
    trunk_gb: float
    offered_gb: float
    copies: float
    """Copies of all experts that fit."""
    bytes_per_node_median: int
    bytes_per_node_most: int
    kv_mb_per_1000_tokens: float


@dataclass(frozen=True, slots=True)
class Data:
    """What crosses links."""

    trunk_up_mb_per_1000_tokens: float
    trunk_down_mb_per_1000_tokens: float
    node_download_gb_median: float
    """To begin with."""
    node_download_hours_median: float


@dataclass(frozen=True, slots=True)
class Speed:
    """Of the simulation itself."""

    calls: int
    """Expert calls: requests of a layer to a holder."""
    cpu_s: float
    calls_per_s: float
    """Per core."""


@dataclass(frozen=True, slots=True)
class SimulationReport:
    """What a swarm would give."""

    scenario: str
    about: str
    model: str
    weight_format: str
    trunk_format: str
    seed: int
    nodes: int
    calibration: str
    rtt_ms_median: float
    missing_experts: int
    """More than 0: the swarm cannot answer, and nothing of speed is said."""
    memory: Memory
    streams: tuple[StreamsForecast, ...]
    prefill: tuple[PrefillForecast, ...]
    what_if: tuple[WhatIf, ...]
    data: Data | None
    pipeline: PipelineForecast | None
    coverage: tuple[CoverageAt, ...]
    speed: Speed
