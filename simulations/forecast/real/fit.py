"""From measurements without a network to what the forecast is told: a calibration, and the machine that all share.

Pure. Nothing here has seen a network that the forecast is held against. Every number is a difference or a least-squares
share of processor time, but for one: `wake_us` is what is missing for the forecast of the two-node swarm without delay
to agree with its measurement.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from shoal.simulations.forecast.compute import AfterWait, Calibration, context_s, trunk_times
from shoal.simulations.forecast.forecast import Swarm, Tally, forecast_streams, pass_traffic
from shoal.simulations.forecast.layer_time import KIB, MeanTraffic
from shoal.simulations.forecast.real.local_costs import Sample
from shoal.simulations.forecast.real.single import CHUNK, LONG, MANY, TrunkTimes
from shoal.simulations.forecast.shape import ModelShape
from shoal.simulations.forecast.shared_cores import SharedMachine


@dataclass(frozen=True, slots=True)
class Fitted:
    """What the forecast is told of this machine."""

    calibration: Calibration
    shared: SharedMachine


SwarmOf = Callable[[int, Fitted], Swarm]
"""A swarm of so many nodes without delay and limit, as the forecast sees it."""


def fit(
    base: Calibration, model: ModelShape, cores: int, trunk: TrunkTimes, samples: Sequence[Sample], swarm_of: SwarmOf
) -> Fitted:
    """base: gives the machine's limits and its kernels."""
    with_trunk = _with_trunk(base, model, trunk)
    nothing = Fitted(with_trunk, SharedMachine(cores))
    calm = [each for each in samples if each.pause_ms == 0]
    loads = [_load(swarm_of(each.nodes, nothing), each) for each in calm]
    known = _with_processes(nothing, model, trunk, calm, loads)
    known = replace(known, calibration=_with_waits(known.calibration, model, samples, swarm_of, nothing))
    return replace(known, shared=replace(known.shared, wake_us=_wake_us(known, model, calm, swarm_of)))


def _with_trunk(base: Calibration, model: ModelShape, trunk: TrunkTimes) -> Calibration:
    """The trunk's own part, from passes of one stream and of many, a short prompt and a long one."""
    matrices = trunk_times(base, replace(base.rates(), layer_s=0.0), model)
    one_s, many_s = trunk.pass_s[0.0] - float(matrices[1]), trunk.many_s - float(matrices[MANY])
    stream_s = max(0.0, (many_s - one_s) / (MANY - 1))
    layers_s = max(0.0, one_s - stream_s)
    rates, chunks = replace(base.rates(), context_factor=1.0), LONG // CHUNK
    contexts_s = [context_s(rates, model, CHUNK, CHUNK * place + CHUNK // 2) for place in range(chunks)]
    short_s = trunk.chunk_s - matrices[CHUNK] - layers_s - stream_s
    long_s = trunk.long_s - chunks * (matrices[CHUNK] + layers_s) - stream_s
    rows_s, factor = _solve([[CHUNK, contexts_s[0]], [LONG, sum(contexts_s)]], [short_s, long_s])
    return replace(
        base,
        layer_us=1e6 * layers_s / model.num_layers,
        stream_us=1e6 * stream_s,
        row_us=1e6 * rows_s,
        context_factor=factor,
    )


def _load(swarm: Swarm, sample: Sample) -> MeanTraffic:
    """What a pass of a sample sends."""
    return pass_traffic(swarm, sample.rows, seed=0)


def _with_processes(
    fitted: Fitted, model: ModelShape, trunk: TrunkTimes, samples: Sequence[Sample], loads: Sequence[MeanTraffic]
) -> Fitted:
    """Processor time of client, relay and nodes: a share per layer, frame, packet and KiB."""
    alone_s = {(1, False): trunk.pass_s[0.0], (MANY, False): trunk.many_s, (CHUNK, True): trunk.chunk_s}
    kibs = [each.num_bytes / KIB for each in loads]
    calls = [each.num_calls for each in loads]
    client = [each.client_s - alone_s[each.rows, each.is_prompt] for each in samples]
    terms = [[float(model.num_moe_layers), call, kib] for call, kib in zip(calls, kibs, strict=True)]
    dispatch_s, client_call_s, client_kib_s = _shares(terms, client, [each.client_s for each in samples])
    nodes = [each.nodes_s for each in samples]
    node_call_s, node_kib_s = _shares([list(each) for each in zip(calls, kibs, strict=True)], nodes, nodes)
    relay = [each.relay_s for each in samples]
    frames = [[2.0 * each.num_calls, each.num_packets] for each in loads]
    frame_s, packet_s = _shares(frames, relay, relay)
    exchange_s, kib_s = client_call_s + node_call_s, client_kib_s + node_kib_s
    calibration = replace(
        fitted.calibration,
        source="this machine, without a network; its limits and kernels: " + fitted.calibration.source,
        dispatch_us=1e6 * dispatch_s,
        exchange_us=1e6 * exchange_s,
        exchange_us_per_kib=1e6 * kib_s,
        holder_share=node_call_s / exchange_s if exchange_s else 0.5,
        holder_share_of_kib=node_kib_s / kib_s if kib_s else 0.5,
    )
    shared = replace(fitted.shared, relay_frame_us=1e6 * frame_s, relay_packet_us=1e6 * packet_s)
    return Fitted(calibration, shared)


def _with_waits(
    calibration: Calibration, model: ModelShape, samples: Sequence[Sample], swarm_of: SwarmOf, nothing: Fitted
) -> Calibration:
    """How much more processor time the largest swarm takes after a pause than without."""
    most = max(each.nodes for each in samples)
    single = [each for each in samples if each.nodes == most and each.rows == 1]
    hot = next(each for each in single if each.pause_ms == 0)
    calls = pass_traffic(swarm_of(most, nothing), 1, seed=0).num_calls
    waits = [
        AfterWait(
            each.pause_ms,
            1e6 * max(0.0, each.client_s - hot.client_s) / model.num_moe_layers,
            1e6 * max(0.0, each.nodes_s - hot.nodes_s) / calls,
        )
        for each in sorted(single, key=lambda each: each.pause_ms)
        if each.pause_ms > 0
    ]
    return replace(calibration, after_wait=tuple(waits))


def _wake_us(fitted: Fitted, model: ModelShape, samples: Sequence[Sample], swarm_of: SwarmOf) -> float:
    """What the forecast of one stream through the largest swarm lacks, per layer."""
    most = max(each.nodes for each in samples)
    measured = next(each for each in samples if each.nodes == most and each.rows == 1)
    said_s = forecast_streams(swarm_of(most, fitted), 1, 0, Tally()).token_ms / 1000
    return max(0.0, 1e6 * (measured.wall_s - said_s) / model.num_moe_layers)


def _shares(terms: Sequence[Sequence[float]], values: Sequence[float], scales: Sequence[float]) -> list[float]:
    """Least squares of relative errors, no share below 0. terms: a row for each value."""
    matrix = np.array(terms) / np.array(scales)[:, None]
    right, kept = np.array(values) / np.array(scales), list(range(matrix.shape[1]))
    while kept:
        found = np.linalg.lstsq(matrix[:, kept], right, rcond=None)[0]
        if (found >= 0).all():
            return [float(found[kept.index(place)]) if place in kept else 0.0 for place in range(matrix.shape[1])]
        kept.remove(kept[int(found.argmin())])
    return [0.0] * matrix.shape[1]


def _solve(terms: Sequence[Sequence[float]], values: Sequence[float]) -> tuple[float, float]:
    first, second = _shares(terms, values, values)
    return first, second
