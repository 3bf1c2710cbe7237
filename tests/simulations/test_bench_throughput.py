"""The throughput benchmark sums up rounds as it says, and refuses numbers of streams that no client has.

Run: pytest tests/simulations/test_bench_throughput.py
"""

import asyncio
import multiprocessing
from pathlib import Path

import pytest

from shoal.protocol.errors import InvalidRequest
from shoal.simulations.bench.throughput import Round, ThroughputSettings, _summary, bench_throughput, table
from shoal.simulations.local import LocalSwarmSettings


def test_the_ratio_is_to_one_stream_of_the_same_round() -> None:
    """A machine that is half as fast in the second round changes rates, not ratios."""
    rounds = [
        {1: Round(speed, 10.0, 20.0, 1.0, 8.0), 4: Round(3 * speed, 12.0, 24.0, 4.0, 2.0)} for speed in (100.0, 50.0)
    ]
    summaries = [_summary(count, rounds, 1) for count in (1, 4)]
    assert [summary["tokens_per_s"] for summary in summaries] == [75.0, 225.0]
    assert summaries[1]["tokens_per_s_range"] == [150.0, 300.0]
    assert summaries[1]["ratio_to_1_range"] == [3.0, 3.0]
    shown = table(
        {
            "dtype": "fp32",
            "trunk_format": "dense",
            "num_nodes": 4,
            "tokens": 8,
            "rounds": 2,
            "commit": "c",
            "machine": "m",
        }
        | {"streams": summaries}
    )
    assert "| 4 | 225 (150-300) | 3.00 (3.00-3.00) | 12.0 | 24.0 | 4.0 | 2.00 |" in shown


@pytest.mark.parametrize("streams", [(), (0,), (1, 257)])
def test_numbers_of_streams_out_of_range_are_refused_before_any_process_starts(streams: tuple[int, ...]) -> None:
    settings = ThroughputSettings(LocalSwarmSettings(Path("no such model")), streams)
    with pytest.raises(InvalidRequest, match="streams"):
        asyncio.run(bench_throughput(multiprocessing.get_context("forkserver"), settings))
