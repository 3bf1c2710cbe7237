"""What the trunk takes by itself on this machine: no swarm, no network, and experts that answer zeros at once.

The first half of what the forecast is told of this machine; `local_costs.py` has the other.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from shoal.client.engine.generate import Engine
from shoal.client.single_process import open_trunk
from shoal.experts.locations import default_cache_dir
from shoal.experts.store import ModelStore
from shoal.experts.worker import ComputeWorker
from shoal.protocol.messages import Rounding
from shoal.simulations.forecast.real.clocks import Paused, decode, prefill_s
from shoal.simulations.forecast.real.networks import PAUSES_MS

NUM_TOKENS, NUM_WARM = 40, 10
MANY = 8
"""Streams of the passes that tell what a further stream costs."""

CHUNK, LONG = 256, 1024
"""Prompts: one chunk, and several that meet a context."""


@dataclass(frozen=True, slots=True)
class TrunkTimes:
    """Seconds, by the clock; pauses are not in them."""

    pass_s: dict[float, float]
    """Of a pass of one stream, by milliseconds of pause before each layer's experts answer."""
    many_s: float
    """Of a pass of `MANY` streams, without pauses."""
    chunk_s: float
    """Of a prompt of `CHUNK` tokens."""
    long_s: float
    """Of a prompt of `LONG`."""


async def measure_trunk(model: Path, rounds: int) -> TrunkTimes:
    """Measure; the fastest of the rounds, for what else runs on this machine only adds.

    Raises:
        ShoalError: as `ModelStore.open`.
    """
    async with _engine(model) as (engine, experts):
        await decode(engine, 1, NUM_WARM)
        pass_s = {pause: min([await _pass_s(engine, experts, pause) for _ in range(rounds)]) for pause in PAUSES_MS}
        experts.pause_s = 0.0
        many_s = min([(await decode(engine, MANY, NUM_TOKENS)).median_s for _ in range(rounds)])
        await prefill_s(engine, CHUNK, 0)
        chunk_s = min([await prefill_s(engine, CHUNK, place) for place in range(rounds)])
        long_s = min([await prefill_s(engine, LONG, place) for place in range(rounds)])
    return TrunkTimes(pass_s, many_s, chunk_s, long_s)


async def _pass_s(engine: Engine, experts: Paused, pause_ms: float) -> float:
    experts.pause_s = pause_ms / 1000
    await decode(engine, 1, 3)
    experts.begin()
    taken = await decode(engine, 1, NUM_TOKENS)
    return taken.mean_s - experts.waited_per_pass_s if pause_ms else taken.median_s


@asynccontextmanager
async def _engine(model: Path) -> AsyncIterator[tuple[Engine, Paused]]:
    worker = ComputeWorker("calibration")
    try:
        with ModelStore.open(model, default_cache_dir()) as store:
            opened, experts = open_trunk(store, model, Rounding.FP32, worker), Paused(None)
            engine = Engine(opened.trunk, experts, opened.tokenizer)
            try:
                yield engine, experts
            finally:
                await engine.aclose()
    finally:
        await worker.aclose()
