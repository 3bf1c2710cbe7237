"""The benchmark of speculation measures what it says, on a run too small to tell anything."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shoal.client.speculation.choice import Speculation
from shoal.protocol.errors import InvalidRequest
from shoal.simulations.bench.decode import DecodeSettings, bench_decode, table


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """How many threads torch uses decides how it sums, and which answers are compared to which."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_round_trip_time_is_a_row_and_no_answer_differs(tmp_path: Path) -> None:
    settings = DecodeSettings((0, 1), Speculation.AUTO, stories=1, tokens=8)
    result = asyncio.run(bench_decode(settings, tmp_path))
    rows = result["rows"]
    assert isinstance(rows, list)
    assert [(row["rtt_ms"], row["answers_differ"]) for row in rows] == [(0, 0), (1, 0)]
    assert all(row["tokens_per_pass"] >= 1 for row in rows)
    assert len(table(result).splitlines()) == 6


@pytest.mark.parametrize("settings", [DecodeSettings(()), DecodeSettings((-1,)), DecodeSettings(stories=0)])
def test_what_cannot_be_measured_is_refused(settings: DecodeSettings) -> None:
    with pytest.raises(InvalidRequest):
        asyncio.run(bench_decode(settings))
