"""The throughput benchmark sums up rounds as it says, and refuses numbers of streams that no client has.

Run: pytest tests/simulations/test_bench_throughput.py
"""

import asyncio
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.protocol.errors import InvalidRequest
from shoal.protocol.events import DispatchSent, ExpertsTimed, LayerTimed, PassTaken
from shoal.protocol.ids import LayerId, PeerId
from shoal.simulations.bench.pass_budget import PassBudget
from shoal.simulations.bench.throughput import (
    Cell,
    Round,
    ThroughputSettings,
    _joined,
    bench_throughput,
    summary,
    together_ms,
)
from shoal.simulations.bench.throughput_table import table
from shoal.simulations.local import LocalSwarmSettings

ROUND = Round(
    tokens_per_s=100.0,
    token_ms=10.0,
    token_ms_p99=20.0,
    together_ms=9.0,
    slowest_stream_ms=11.0,
    rows_per_pass=1.0,
    waves_per_pass=1.0,
    dispatches_per_token=8.0,
    client_cores=0.5,
    nodes_cores=0.25,
    other_cores=0.1,
    requests_per_call=1.0,
    budget_ms={"total": 10.0, "trunk": 3.0, "experts": 6.5},
)


def test_the_ratio_is_to_one_stream_of_the_same_round() -> None:
    """A machine that is half as fast in the second round changes rates, not ratios."""
    one, four = Cell(1, None), Cell(4, 2)
    rounds = [
        {one: replace(ROUND, tokens_per_s=speed), four: replace(ROUND, tokens_per_s=3 * speed)}
        for speed in (100.0, 50.0)
    ]
    summaries = [summary(cell, rounds) for cell in (one, four)]
    assert [each["tokens_per_s"] for each in summaries] == [75.0, 225.0]
    assert summaries[1]["tokens_per_s_range"] == [150.0, 300.0]
    assert summaries[1]["ratio_range"] == [3.0, 3.0]
    shown = table(
        {
            "dtype": "fp32",
            "trunk_format": "dense",
            "num_nodes": 4,
            "replicas": 2,
            "clients": 1,
            "tokens": 8,
            "prompt_tokens": 16,
            "rounds": 2,
            "link": {"rtt_ms": 20.0, "loss": 0.01, "rate_bytes_per_s": 12_500_000},
            "network": "namespaces",
            "network_reason": "",
            "congestion_control": "reno",
            "commit": "c",
            "machine": "m",
            "streams": summaries,
        }
    )
    assert "RTT 20 ms, loss 1 %, 100 Mbit/s, namespaces, TCP reno" in shown
    assert "| 4 | 2 | 225 (150-300) | 3.00 (3.00-3.00) | 10.0 | 20.0 | 9.0 | 11.0 | 1.0 | 1.00 | 8.00 | 1.00 |" in shown
    assert "| 1 | auto | 10.0 | 3.0 | 6.5 |" in shown


def test_the_time_while_all_answer_leaves_out_prompts_and_those_that_have_ended() -> None:
    """The second begins at 2 s and the first ends at 4 s; between them a token a second, outside slower and faster."""
    assert together_ms([[0.0, 0.1, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 9.0]]) == 1000.0
    assert together_ms([[0.0, 1.0], [2.0, 3.0]]) == 0.0


def test_prompts_that_are_longer_than_stories_go_on_with_the_next_one() -> None:
    assert _joined([[1, 2], [3], [4, 5]], 4, 5) == [[1, 2, 3, 4, 5], [3, 4, 5, 1, 2], [4, 5, 1, 2, 3], [1, 2, 3, 4, 5]]


@pytest.mark.parametrize("streams", [(), (0,), (1, 257)])
def test_numbers_of_streams_out_of_range_are_refused_before_any_process_starts(streams: tuple[int, ...]) -> None:
    settings = ThroughputSettings(LocalSwarmSettings(Path("no such model")), streams)
    with pytest.raises(InvalidRequest, match="streams"):
        asyncio.run(bench_throughput(multiprocessing.get_context("forkserver"), settings))


def test_a_number_of_groups_out_of_range_is_refused_before_any_process_starts() -> None:
    settings = ThroughputSettings(LocalSwarmSettings(Path("no such model")), groups=(None, 9))
    with pytest.raises(InvalidRequest, match="decode_groups"):
        asyncio.run(bench_throughput(multiprocessing.get_context("forkserver"), settings))


def test_a_budget_is_of_the_passes_between_two_looks_and_counts_their_waves() -> None:
    budget, peer = PassBudget(), PeerId("peer")

    def one_pass(num_waves: int) -> None:
        for _ in range(num_waves):
            for layer in (LayerId(0), LayerId(1)):
                budget(LayerTimed(1, layer, 2, attention_s=0.002, route_s=0.001, experts_s=0.01))
                budget(DispatchSent(peer, layer, 1, 2, ()))
            budget(ExpertsTimed(LayerId(1), 2, 1, peer, 0.008, 0.001, 0.0005, 0.0, 0.0, 0.0005))
        budget(PassTaken(1, 2 * num_waves, 0, 4, 0, head_s=0.001, sampling_s=0.002, total_s=0.05))

    one_pass(1)
    before = budget.now()
    one_pass(2)
    one_pass(2)
    since = budget.now().since(before)
    assert (since.num_passes, since.num_rows, since.num_dispatches, since.waves_per_pass) == (2, 8, 8, 2.0)
    per_pass = since.per_pass()
    assert per_pass["trunk"] == pytest.approx(12.0)
    assert per_pass["experts"] == pytest.approx(40.0)
    assert (per_pass["wire"], per_pass["head"], per_pass["total"]) == pytest.approx((16.0, 1.0, 50.0))
