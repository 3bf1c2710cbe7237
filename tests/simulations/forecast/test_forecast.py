"""The cost model says what arithmetic by hand says, and what other figures of the project say.

Run: pytest tests/simulations/forecast/test_forecast.py
"""

from dataclasses import replace

import pytest

from shoal.protocol.errors import InvalidRequest
from shoal.simulations.forecast.calibrate import from_measurements
from shoal.simulations.forecast.compute import (
    Rates,
    calibration_text,
    expert_times,
    read_calibration,
    shipped_calibration,
    trunk_times,
)
from shoal.simulations.forecast.forecast import Tally, forecast_prefill, forecast_streams
from shoal.simulations.forecast.layer_pipeline import forecast_pipeline, half_way_round
from shoal.simulations.forecast.layer_time import EXPERTS, RTT, UPLINK, Conditions
from shoal.simulations.forecast.peers import Link, TrunkHost
from tests.simulations.forecast.swarms import ENDLESS, FREE, parts_swarm, peer, v3

LAYERS = 58


def one_stream_s(swarm) -> float:  # type: ignore[no-untyped-def]
    return forecast_streams(swarm, 1, 0, Tally()).token_ms / 1000


def test_sizes_are_those_of_deepseek_v3() -> None:
    model = v3()
    assert model.num_experts == 14_848
    assert model.expert_bytes == pytest.approx(22.7e6, rel=0.01)
    assert model.experts_bytes == pytest.approx(337.2e9, rel=0.01)
    assert model.trunk.total == pytest.approx(11.7e9, rel=0.01)
    assert model.trunk_macs == pytest.approx(16.2e9, rel=0.01)  # 17.1 B without the embedding's 0.9
    assert model.kv_bytes_per_token == 70_272
    assert model.request_bytes(1, 8) - 14_336 < 300
    assert model.reply_bytes(1) - 28_672 < 300


def test_the_calibrated_machine_takes_what_it_took() -> None:
    calibration = shipped_calibration()
    times = expert_times(calibration, calibration.rates(), v3())
    for rows, ms in calibration.expert_ms["int4_g128"].items():
        assert times[int(rows)] == pytest.approx(ms / 1000, rel=0.01)
    assert all(times[1:] >= times[:-1] * 0.999), "more rows take longer"


def test_a_trunk_takes_the_time_of_its_bytes() -> None:
    gpu = Rates(700e9, 20e12, layer_s=0.0)
    calibration = shipped_calibration()
    times = trunk_times(calibration, gpu, v3())
    assert times[1] == pytest.approx(
        8.53e9 / 700e9, rel=0.02
    )  # 11.7 GB less the embedding (1.85) and shared experts (1.3)


def test_a_token_that_costs_nothing_but_round_trips_takes_one_for_every_layer() -> None:
    swarm = parts_swarm([peer(0, 0.02), peer(1, 0.02)])
    result = forecast_streams(swarm, 1, 0, Tally())
    assert result.token_ms == pytest.approx(LAYERS * 20, rel=1e-6)
    assert result.limit == RTT
    assert sum(result.shares.values()) == pytest.approx(1)


def test_a_layer_waits_for_its_farthest_holder() -> None:
    assert one_stream_s(parts_swarm([peer(0, 0.001), peer(1, 0.05)])) == pytest.approx(LAYERS * 0.05, rel=0.02)


def test_requests_share_the_uplink_and_answers_the_downlink() -> None:
    swarm = parts_swarm([peer(0)], TrunkHost(Link(1e6, ENDLESS), FREE, 10**12))
    result = forecast_streams(swarm, 1, 0, Tally())
    assert result.token_ms / 1000 == pytest.approx(LAYERS * swarm.model.request_bytes(1, 8) / 1e6, rel=1e-6)
    assert result.limit == UPLINK
    both = parts_swarm([peer(0), peer(1)], TrunkHost(Link(ENDLESS, 1e6), FREE, 10**12))
    pairs = forecast_streams(both, 1, 0, Tally())
    replies = pairs.holders_per_layer * LAYERS * both.model.reply_bytes(1)
    assert pairs.token_ms / 1000 == pytest.approx(replies / 1e6, rel=1e-6)
    assert pairs.down_bytes_per_token == pytest.approx(replies, rel=1e-3)


def test_a_holder_computes_its_experts_one_after_another() -> None:
    slow = Rates(40e9, ENDLESS, layer_s=0.0)
    alone, pair = parts_swarm([peer(0, rates=slow)]), parts_swarm([peer(0, rates=slow), peer(1, rates=slow)])
    expert_s = v3().expert_bytes / 40e9
    assert one_stream_s(alone) >= LAYERS * 8 * expert_s * 0.999
    assert one_stream_s(pair) < one_stream_s(alone)
    assert forecast_streams(alone, 1, 0, Tally()).limit == EXPERTS


def test_what_a_request_costs_beside_its_experts_is_counted_once_a_layer() -> None:
    assert one_stream_s(parts_swarm([peer(0, call_s=0.003)])) == pytest.approx(LAYERS * 0.003, rel=1e-6)


def test_many_streams_share_round_trips() -> None:
    swarm = parts_swarm([peer(0, 0.02), peer(1, 0.02)])
    many = forecast_streams(swarm, 32, 0, Tally())
    assert many.tokens_per_s == pytest.approx(32 * forecast_streams(swarm, 1, 0, Tally()).tokens_per_s, rel=1e-6)


def test_round_trips_of_up_to_four_chunks_of_a_prompt_overlap() -> None:
    swarm = parts_swarm([peer(0, 0.02)])
    for num_tokens, rounds in ((256, 1), (257, 1), (1024, 1), (1025, 2)):
        taken_s = forecast_prefill(swarm, num_tokens, 0, Tally()).time_s
        assert taken_s == pytest.approx(rounds * LAYERS * 0.02, rel=1e-6), num_tokens


def test_hedges_cut_what_stalls_cost() -> None:
    stalling = Conditions(stall_share=0.5, stall_factor=10, is_tcp=False)
    swarm = parts_swarm([peer(0, 0.02)])
    hedged = one_stream_s(replace(swarm, conditions=stalling))
    patient = one_stream_s(replace(swarm, conditions=replace(stalling, is_hedged=False)))
    assert one_stream_s(swarm) < hedged < patient


def test_deaths_cost_and_one_seed_gives_one_forecast() -> None:
    swarm = parts_swarm([peer(0, 0.02), peer(1, 0.03)])
    assert one_stream_s(replace(swarm, deaths_per_peer_s=0.01)) > one_stream_s(swarm)
    assert forecast_streams(swarm, 8, 3, Tally()) == forecast_streams(swarm, 8, 3, Tally())


def test_a_layer_pipeline_reads_every_active_byte_on_one_machine_after_another() -> None:
    desktop = Rates(40e9, ENDLESS, layer_s=0.0)
    swarm = parts_swarm([peer(i, rates=desktop) for i in range(40)])
    pipeline = forecast_pipeline(swarm, (1, 8), 0, half_way_round)
    assert pipeline.tokens_per_s is not None
    assert pipeline.tokens_per_s[1] == pytest.approx(1 / 0.5, rel=0.15)  # DESIGN §1: 20 GB at 40 GB/s
    assert pipeline.hops == 32  # two layers of 5.9 GB on a machine of 16 GB
    few = forecast_pipeline(parts_swarm([peer(0)]), (1,), 0, half_way_round)
    assert few.tokens_per_s is None
    assert "2 of 61" in few.reason


def test_a_calibration_file_can_be_read_again(tmp_path) -> None:  # type: ignore[no-untyped-def]
    made = from_measurements(
        {
            "commit": "c", "threads": 2, "isa": "avx2", "machine": "m", "read_gb_per_s": 20.0,
            "multiply_tflop_per_s": 0.2, "rows": [{"format": "bf16", "tokens": 1, "ms": 4.5}],
        },
        {
            "rows": [
                {"channel": "direct", "bytes": 1024, "reply_bytes": 1024, "overhead_ms_p50": 0.05},
                {"channel": "libp2p", "bytes": 1024, "reply_bytes": 1024, "overhead_ms_p50": 9.0},
                {"channel": "direct", "bytes": 10240, "reply_bytes": 10240, "overhead_ms_p50": 0.068},
            ]
        },
        300.0,
    )  # fmt: skip
    assert made.exchange_us_per_kib == pytest.approx(1.0)
    assert made.exchange_us == pytest.approx(48.0)
    path = tmp_path / "calibration.json"
    path.write_text(calibration_text(made), encoding="utf-8")
    assert read_calibration(path) == made
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(InvalidRequest, match="no calibration"):
        read_calibration(path)
    with pytest.raises(InvalidRequest, match="int4_g128"):
        expert_times(made, FREE, v3())
