"""What the forecast is told of a machine is found again in measurements that were made up from it.

Run: pytest tests/simulations/forecast/real/test_fit.py
"""

from dataclasses import replace

import numpy as np
import pytest

from shoal.client.trunk.linear_maker import TrunkFormat
from shoal.experts.family import read_config
from shoal.protocol.messages import WeightFormat
from shoal.simulations.demo_model import MODEL_DIRECTORY
from shoal.simulations.forecast.compute import AfterWait, context_s, shipped_calibration, trunk_times
from shoal.simulations.forecast.forecast import Tally, forecast_streams, pass_traffic
from shoal.simulations.forecast.real.fit import Fitted, fit
from shoal.simulations.forecast.real.local_costs import Sample
from shoal.simulations.forecast.real.networks import CALIBRATED, PAUSES_MS, SETTINGS, RealSetting, Shape
from shoal.simulations.forecast.real.predict import Model, plan, predict, swarm_without_network
from shoal.simulations.forecast.real.single import CHUNK, LONG, MANY, TrunkTimes
from shoal.simulations.forecast.routing import draw_routes
from shoal.simulations.forecast.shape import FP32_BYTES, model_shape
from shoal.simulations.forecast.shared_cores import SharedMachine

BASE = shipped_calibration()
TRUE = replace(
    BASE,
    layer_us=300.0,
    stream_us=400.0,
    row_us=80.0,
    context_factor=10.0,
    dispatch_us=250.0,
    exchange_us=600.0,
    holder_share=0.4,
    exchange_us_per_kib=4.0,
    holder_share_of_kib=0.6,
    after_wait=(AfterWait(2.0, 100.0, 50.0), AfterWait(5.0, 200.0, 90.0), AfterWait(20.0, 400.0, 150.0)),
)
SHARED = SharedMachine(2, 40.0, 4.0, 120.0)
MICRO = 1e-6


def demo() -> Model:
    shape = model_shape(read_config(MODEL_DIRECTORY), "demo", WeightFormat.FP8_BLOCK, TrunkFormat.DENSE, FP32_BYTES)
    return Model(shape, draw_routes(shape.router, shape.num_moe_layers, np.random.default_rng(0)))


MODEL = demo()


def trunk_as_true() -> TrunkTimes:
    matrices, layers = trunk_times(BASE, replace(BASE.rates(), layer_s=0.0), MODEL.shape), MODEL.shape.num_layers
    layers_s, stream_s, row_s = layers * 300 * MICRO, 400 * MICRO, 80 * MICRO

    def prompt_s(num_tokens: int) -> float:
        starts = range(0, num_tokens, CHUNK)
        contexts_s = sum(context_s(BASE.rates(), MODEL.shape, CHUNK, start + CHUNK // 2) for start in starts)
        return len(starts) * (matrices[CHUNK] + layers_s) + stream_s + num_tokens * row_s + 10 * contexts_s

    pass_s = {pause: float(matrices[1]) + layers_s + stream_s for pause in PAUSES_MS}
    return TrunkTimes(pass_s, float(matrices[MANY]) + layers_s + MANY * stream_s, prompt_s(CHUNK), prompt_s(LONG))


def sample(trunk: TrunkTimes, nodes: int, rows: int, pause_ms: float) -> Sample:
    swarm = swarm_without_network(MODEL, nodes, Fitted(TRUE, SHARED))
    load, kib, layers = pass_traffic(swarm, rows, 0), 0.0, MODEL.shape.num_moe_layers
    kib = load.num_bytes / 1024
    alone_s = {1: trunk.pass_s[0.0], MANY: trunk.many_s, CHUNK: trunk.chunk_s}[rows]
    cold_layer_us, cold_call_us = {0: (0, 0), 2: (100, 50), 5: (200, 90), 20: (400, 150)}[int(pause_ms)]
    client_us = layers * (250 + cold_layer_us) + load.num_calls * 360 + kib * 1.6
    nodes_us = load.num_calls * (240 + cold_call_us) + kib * 2.4
    relay_us = 2 * load.num_calls * 40 + load.num_packets * 4
    wall_s = forecast_streams(swarm, rows, 0, Tally()).token_ms / 1000 if rows == 1 and not pause_ms else 1.0
    return Sample(
        nodes, pause_ms, rows, rows == CHUNK, wall_s, alone_s + client_us * MICRO, relay_us * MICRO, nodes_us * MICRO
    )


def test_costs_are_found_again_in_the_measurements_that_they_made() -> None:
    trunk = trunk_as_true()
    kinds = [(1, pause_ms) for pause_ms in PAUSES_MS] + [(MANY, 0.0), (CHUNK, 0.0)]
    samples = [sample(trunk, shape.nodes, rows, pause_ms) for shape in CALIBRATED for rows, pause_ms in kinds]
    found = fit(BASE, MODEL.shape, 2, trunk, samples, lambda nodes, said: swarm_without_network(MODEL, nodes, said))
    names = (
        "layer_us", "stream_us", "row_us", "context_factor", "dispatch_us", "exchange_us", "holder_share",
        "exchange_us_per_kib", "holder_share_of_kib",
    )  # fmt: skip
    for name in names:
        assert getattr(found.calibration, name) == pytest.approx(getattr(TRUE, name), rel=0.01), name
    for said, true in zip(found.calibration.after_wait, TRUE.after_wait, strict=True):
        assert said.wait_ms == true.wait_ms
        assert said.layer_us == pytest.approx(true.layer_us, rel=0.01)
        assert said.call_us == pytest.approx(true.call_us, rel=0.01)
    assert found.shared.relay_frame_us == pytest.approx(40, rel=0.01)
    assert found.shared.relay_packet_us == pytest.approx(4, rel=0.01)
    assert found.shared.wake_us == pytest.approx(120, rel=0.05)


def test_nothing_that_is_compared_was_seen_by_the_calibration() -> None:
    assert not [each for each in SETTINGS if each.shape in CALIBRATED and each.rtt_ms == 0]
    assert len({each.name for each in SETTINGS}) == len(SETTINGS)
    assert sum(not each.prompt for each in SETTINGS) >= 6
    assert {each.rtt_ms for each in SETTINGS} == {0, 5, 20, 50}
    assert {each.mbit_per_s for each in SETTINGS} == {1000, 100, 20}


def test_a_token_over_a_network_takes_its_round_trips_and_the_time_of_its_bytes() -> None:
    fitted = Fitted(replace(TRUE, after_wait=()), SHARED)
    here, there = RealSetting(Shape(1), 0, 0), RealSetting(Shape(1), 20, 0.5)
    # a request of 180 + 1,024 + 4 x 6 bytes and an answer of 180 + 1,024, each with 52 of headers, cross two links
    network_s = 4 * (0.020 + 2 * (1280 + 1256) / 62_500)
    for say in (predict, plan):
        assert say(MODEL, there, fitted).seconds - say(MODEL, here, fitted).seconds == pytest.approx(network_s)
    assert predict(MODEL, there, fitted).limit == "uplink"


def test_the_planner_and_the_cost_model_say_of_a_prompt_what_its_link_says() -> None:
    setting = RealSetting(Shape(2), 5, 1, prompt=256)
    fitted = Fitted(TRUE, SHARED)
    num_bytes = pass_traffic(swarm_without_network(MODEL, 2, fitted), 256, 0).num_bytes / 2
    for said in (predict(MODEL, setting, fitted), plan(MODEL, setting, fitted)):
        assert 1.0 <= said.seconds / (num_bytes / 125_000) <= 2.1  # there, and the last answers back
        assert said.limit in ("uplink", "downlink", "holders' uplink")
