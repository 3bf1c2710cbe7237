"""The prefill benchmark compares with what nobody can beat, round by round.

Run: pytest tests/simulations/test_bench_prefill.py
"""

import asyncio
import multiprocessing
from pathlib import Path

import pytest

from shoal.protocol.errors import InvalidRequest
from shoal.simulations.bench.prefill import PrefillSettings, Round, bench_prefill, summary, table
from shoal.simulations.local import LocalSwarmSettings

ROUNDS = [Round(8.0, 2.5, 2.0, 1.0, 64), Round(16.0, 5.0, 4.0, 1.0, 66), Round(9.0, 2.0, 0.5, 1.0, 64)]


def test_the_bound_is_the_greater_of_link_and_compute_of_the_same_round() -> None:
    """A machine that is half as fast in the second round changes times, not ratios."""
    assert [each.bound_s for each in ROUNDS] == [2.0, 4.0, 1.0]
    result = summary(ROUNDS, 1000)
    assert (result["ratio_to_bound"], result["ratio_to_bound_range"]) == (1.25, [1.25, 2.0])
    assert (result["ratio_to_bound_before"], result["ratio_to_bound_before_range"]) == (4.0, [4.0, 9.0])
    assert (result["gain"], result["gain_range"]) == (3.2, [3.2, 4.5])
    assert (result["tokens_per_s_before"], result["tokens_per_s"]) == (1000 / 9, 400.0)


def test_the_table_says_what_was_measured() -> None:
    about = {"tokens": 1000, "rtt_ms": 20.0, "rate_mbit": 100.0, "num_nodes": 4, "dtype": "fp32", "ahead": 4}
    shown = table(about | {"commit": "c", "machine": "m", "rounds": ROUNDS} | summary(ROUNDS, 1000))
    assert "| one by one | 9.00 | 111 | 4.00 (4.00-9.00) |" in shown
    assert "| overlapping | 2.50 | 400 | 1.25 (1.25-2.00) |" in shown


@pytest.mark.parametrize(("tokens", "rounds"), [(0, 1), (1, 0)])
def test_what_cannot_be_measured_is_refused_before_any_process_starts(tokens: int, rounds: int) -> None:
    settings = PrefillSettings(LocalSwarmSettings(Path("no such model")), tokens, rounds=rounds)
    with pytest.raises(InvalidRequest):
        asyncio.run(bench_prefill(multiprocessing.get_context("forkserver"), settings))
