"""Makes a calibration of this machine: its limits, the expert kernels' times, and what an exchange costs beside."""

import asyncio
import random
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from shoal.client.engine.sampler import Sampling
from shoal.kernels.cpu import Format
from shoal.node.holdings.assignment import Holding
from shoal.protocol.events import Event, ExpertsTimed
from shoal.protocol.ids import ExpertId
from shoal.protocol.net.memory import no_delay, untouched
from shoal.simulations.bench.kernel_ops import HIDDEN, INTER
from shoal.simulations.bench.kernels import DEFAULT_FORMATS, bench_kernels
from shoal.simulations.bench.wire import bench_wire
from shoal.simulations.forecast.compute import Calibration
from shoal.simulations.virtual.model import SimulatedModel
from shoal.simulations.virtual.soak import demo_model_in_memory
from shoal.simulations.virtual.world import open_world

KIB = 1024
NUM_TOKENS = 48
"""Of the answer that the client's own part is taken from."""


def calibrate(
    num_exchanges: int,
    threads: int = 0,
    formats: Sequence[Format] = DEFAULT_FORMATS,
    tokens: Sequence[int] = (1, 8, 64, 512),
) -> Calibration:
    """Measure this machine; takes about a minute and a half.

    Raises:
        RuntimeError: shoal was installed without its C++ kernels.
    """
    kernels = bench_kernels(formats, tokens, threads, ops=("expert",))
    wire = asyncio.run(bench_wire(num_exchanges=num_exchanges))
    torch.set_num_threads(1)  # as the demonstration does: its tensors are small, and idle threads spin
    with demo_model_in_memory() as model:
        dispatch_us = asyncio.run(_dispatch_us(model))
    return from_measurements(kernels, wire, dispatch_us)


def from_measurements(kernels: dict[str, Any], wire: dict[str, Any], dispatch_us: float) -> Calibration:
    """Put results of `shoal bench kernels --op expert` and `shoal bench wire` together."""
    expert_ms: dict[str, dict[str, float]] = {}
    for row in kernels["rows"]:
        expert_ms.setdefault(row["format"], {})[str(row["tokens"])] = row["ms"]
    direct = [row for row in wire["rows"] if row["channel"] == "direct"]
    fixed_us, us_per_kib = _line(
        [(row["bytes"] + row["reply_bytes"]) / KIB for row in direct], [1000 * row["overhead_ms_p50"] for row in direct]
    )
    return Calibration(
        source=f"shoal bench calibrate, commit {kernels['commit']}, {kernels['threads']} threads, {kernels['isa']};"
        f" {kernels['machine']}",
        read_gb_per_s=kernels["read_gb_per_s"],
        multiply_tflop_per_s=kernels["multiply_tflop_per_s"],
        expert_ms=expert_ms,
        expert_bytes=2 * 3 * HIDDEN * INTER,
        exchange_us=fixed_us,
        exchange_us_per_kib=us_per_kib,
        dispatch_us=dispatch_us,
    )


def _line(sizes: Sequence[float], times: Sequence[float]) -> tuple[float, float]:
    """What the smallest costs, and what every further KiB adds by the largest."""
    slope = max(0.0, (times[-1] - times[0]) / (sizes[-1] - sizes[0]))
    return max(0.0, times[0] - slope * sizes[0]), slope


async def _dispatch_us(model: SimulatedModel) -> float:
    """The client's own part of a layer: median over an answer through nodes in this process."""
    local_us: list[float] = []

    def observe(event: Event) -> None:
        if isinstance(event, ExpertsTimed):
            local_us.append(1e6 * event.local_s)

    everything: Holding = {
        layer: tuple(map(ExpertId, range(model.store.spec.router.num_experts))) for layer in model.layers
    }
    async with open_world(
        model, [everything], [0.0], random.Random(0), no_delay, untouched, lambda _, honest: honest, observe
    ) as world:
        async for _ in world.swarm.stream([1, 2, 3], Sampling(max_tokens=NUM_TOKENS, ignore_eos=True)):
            pass
    return statistics.median(local_us)
