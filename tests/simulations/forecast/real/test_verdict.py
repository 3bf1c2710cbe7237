"""The table, its verdict, and the meters behind it.

Run: pytest tests/simulations/forecast/real/test_verdict.py
"""

import asyncio

import pytest
import torch

from shoal.protocol.errors import InvalidRequest
from shoal.protocol.ids import LayerId
from shoal.simulations.forecast.compute import shipped_calibration
from shoal.simulations.forecast.real import run
from shoal.simulations.forecast.real.clocks import CpuMeter, Paused
from shoal.simulations.forecast.real.measure import Measured
from shoal.simulations.forecast.real.networks import RealSetting, Shape
from shoal.simulations.forecast.real.predict import Predicted
from shoal.simulations.forecast.real.verdict import RealReport, report_lines, row, table
from shoal.simulations.forecast.shared_cores import SharedMachine

SETTING = RealSetting(Shape(8, 2), 5, 100, streams=4, loss=0.01)
MEASURED = Measured(SETTING, (0.110, 0.090, 0.100))


def test_a_row_is_near_if_the_model_is_within_15_percent_and_the_planner_within_20() -> None:
    near = row(MEASURED, Predicted(0.1149, "RTT"), Predicted(0.0801, "uplink"))
    assert near.is_near
    assert (near.measured_ms, near.model_ms, near.plan_ms) == pytest.approx((100, 114.9, 80.1))
    assert (near.model_error, near.plan_error) == pytest.approx((0.149, -0.199))
    assert not row(MEASURED, Predicted(0.1151, "RTT"), Predicted(0.1, "RTT")).is_near
    assert not row(MEASURED, Predicted(0.1, "RTT"), Predicted(0.0799, "RTT")).is_near


def test_the_table_says_what_was_measured_and_shows_who_misses() -> None:
    rows = [
        row(MEASURED, Predicted(0.105, "RTT"), Predicted(0.095, "RTT")),
        row(MEASURED, Predicted(0.205, "uplink"), Predicted(0.095, "RTT")),
    ]
    lines = table(rows).splitlines()
    name = "8 nodes, 2 replicas, 5 ms, 100 Mbit/s, loss 1 %, streams: 4"
    assert lines[2] == f"| {name} | 100.0 (90.0-110.0) | 105.0 | +5.0% | 95.0 | -5.0% | RTT |"
    assert lines[3] == f"| **{name}** | 100.0 (90.0-110.0) | 205.0 | +105.0% | 95.0 | -5.0% | uplink |"
    report = RealReport({}, "c", "reno", 3, 1.0, shipped_calibration(), SharedMachine(2), tuple(rows))
    assert report.misses == 1
    assert "1 of 2 rows are near enough" in "\n".join(report_lines(report))


def test_a_prompt_is_named_by_its_length() -> None:
    assert RealSetting(Shape(2), 20, 1000, prompt=512).name == "2 nodes, 20 ms, 1000 Mbit/s, prompt of 512"


def test_the_meter_counts_from_lap_to_lap() -> None:
    used = {1: 10.0, 2: 20.0}
    meter = CpuMeter({"client": 1, "relay": 2}, lambda pid: used[pid])
    used.update({1: 10.5, 2: 21.0})
    assert meter.lap() == {"client": 0.5, "relay": 1.0}
    assert meter.lap() == {"client": 0.0, "relay": 0.0}


def test_a_pause_counts_passes_by_layers() -> None:
    async def ask() -> Paused:
        paused, x, idx = Paused(None), torch.ones(3, 8), torch.zeros(3, 2, dtype=torch.int64)
        for _ in range(2):
            for layer in (1, 2, 3):
                zeros = await paused(LayerId(layer), x, idx, torch.ones(3, 2))
                assert zeros.shape == x.shape
                assert not zeros.any()
        return paused

    paused = asyncio.run(ask())
    assert paused.num_passes == 2
    paused.begin()
    assert paused.num_passes == 0


def test_where_there_are_no_namespaces_it_says_so_and_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "why_no_namespaces", lambda: "they need root")
    with pytest.raises(InvalidRequest, match="they need root") as raised:
        run.demo_model_for_forecasts()
    assert raised.value.exit_status == 2
