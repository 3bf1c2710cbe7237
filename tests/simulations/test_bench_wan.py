"""The benchmark over networks measures the cells that it is told to, in bounded time, and says what it could not.

Run: pytest tests/simulations/test_bench_wan.py
"""

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

from shoal.client.engine.generate import Token
from shoal.protocol.errors import InvalidRequest
from shoal.simulations.bench.cpu_shares import CpuShares
from shoal.simulations.bench.drafting import PassCount, Run
from shoal.simulations.bench.wan import bound, summary, write
from shoal.simulations.bench.wan_cell import Drafted, Taken, drafts_beside
from shoal.simulations.bench.wan_settings import OUT, QUICK, Cell, Said, SwarmShape, WanSettings, parse
from shoal.simulations.bench.wan_table import failures, table


def test_it_measures_what_it_is_told_to() -> None:
    assert parse([]) == Said(WanSettings(), False, OUT)
    assert parse(["--quick", "--json"]) == Said(QUICK, True, OUT)
    settings = parse(
        [
            "--rtt",
            "5",
            "--loss",
            "0,1",
            "--streams",
            "2",
            "--mbit",
            "20",
            "--activations",
            "exact,int8",
            "--swarm",
            "2x1,4x2",
        ]
    ).settings
    cells = list(settings.cells())
    assert [(cell.rtt_ms, cell.loss, cell.streams) for cell in cells] == [(5, 0, 2), (5, 0.01, 2)]
    assert cells[0].link.rate_bytes_per_s == 2.5e6
    assert settings.activations == ("exact", "int8")
    assert settings.swarms == (SwarmShape(2, 1), SwarmShape(4, 2))


def test_the_default_has_every_round_trip_and_every_network_and_the_full_table_all_of_both() -> None:
    cells, every = list(WanSettings().cells()), list(parse(["--full"]).settings.cells())
    assert (len(cells), len(every)) == (30, 5 * 3 * 2 * 3)
    assert set(cells) < set(every)
    assert {cell.rtt_ms for cell in cells} == {0, 1, 5, 20, 50}
    assert {(cell.loss, cell.mbit_per_s) for cell in cells} == {(cell.loss, cell.mbit_per_s) for cell in every}
    assert WanSettings().minutes <= 12 < parse(["--full"]).settings.minutes
    assert parse(["--minutes", "1"]).settings.minutes == 1


@pytest.mark.parametrize(
    "settings",
    [
        WanSettings(rtts_ms=()),
        WanSettings(streams=(0,)),
        WanSettings(streams=(1000,)),
        WanSettings(swarms=()),
        WanSettings(tokens=2),
        WanSettings(minutes=0),
        WanSettings(activations=("fp3",)),
    ],
)
def test_what_cannot_be_measured_is_refused(settings: WanSettings) -> None:
    with pytest.raises(InvalidRequest):
        settings.check()


TAKEN_CPU = CpuShares(0.5, 0.25, 0.125)


def taken(tokens_per_s: float, drafted: Drafted | None = None) -> Taken:
    return Taken(tokens_per_s, (10.0, 12.0), 21_800.0, TAKEN_CPU, drafted)


def run(ids: Sequence[int], drafted: Collection[int], seconds: float) -> Run:
    """An answer of tokens that came evenly; `drafted`: places of those that a draft had named."""
    tokens = [Token(id_, str(id_), place, 0.0, was_drafted=place in drafted) for place, id_ in enumerate(ids)]
    return Run(tokens, [seconds * place / (len(ids) - 1) for place in range(len(ids))])


def test_an_answer_with_drafts_is_held_against_the_same_one_without() -> None:
    plain, counted = run([5, 6, 7, 8, 9], (), 0.8), PassCount()
    counted.num_passes = 2
    found = drafts_beside(plain, run([5, 6, 7, 8, 9], (2, 4), 0.4), counted)
    assert (found.tokens_per_s, found.ratio) == (pytest.approx(10.0), pytest.approx(2.0))
    assert (found.num_tokens, found.num_runs, found.num_passes) == (4, 2, 2)
    assert not found.differs
    assert drafts_beside(plain, run([5, 6, 7, 8, 1], (2, 4), 0.4), counted).differs


def test_a_single_answer_is_held_against_round_trips_and_one_process() -> None:
    one = summary(Cell(20, 0, 1000, 1), [taken(11.0), taken(11.2), taken(11.1)], [])
    kept = bound(one, 4, 5.0)
    assert kept == {
        "token_ms": pytest.approx(1000 / 11.1), "bound_ms": pytest.approx(1.1 * (4 * 20 + 5)), "is_kept": True,
    }  # fmt: skip
    assert bound(one, 4, 1.0)["is_kept"] is False
    assert bound(summary(Cell(20, 0, 1000, 8), [taken(80.0)], []), 4, 5.0) == {}
    assert bound(summary(Cell(20, 0, 1000, 1), [], ["CoverageGap"]), 4, 5.0) == {}


def test_both_forms_are_written_and_say_what_failed_and_what_had_no_time(tmp_path: Path) -> None:
    drafted = Drafted(24.2, 2.2, 40, 10, 12, differs=False)
    rows = [
        summary(Cell(20, 0.01, 100, 1), [taken(10.0, drafted), taken(12.0, drafted)], []),
        summary(Cell(20, 0.01, 100, 32), [taken(220.0)], ["TimeoutError"]),
        summary(Cell(50, 0, 100, 1), [], ["CoverageGap"]),
        summary(Cell(50, 0, 100, 8), [], []),
    ]
    machine = {"cpu": "a CPU", "cores": 2, "kernel": "Linux", "python": "3.11", "tcp": "cubic"}
    result = {
        "machine": machine, "commit": "c", "tcp": "reno", "moe_layers": 4, "alone_ms": 4.5,
        "alone_ms_range": [4.25, 5],
        "tokens": 24, "tokens_alone": 48, "rounds": 2, "seconds": 100.0,
        "rows": [{"swarm": "4x2", "activations": "exact", "echo_ms": 20.25} | row | bound(row, 4, 4.5) for row in rows],
    }  # fmt: skip
    write(result, tmp_path / "out")
    shown = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert shown == table(result) + "\n"
    assert json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8")) == result
    head, bounds, single, rates = shown.split("\n\n")
    assert "TCP in every namespace: reno. 2 of 4 cells measured in 2 rounds, 2 with failures" in head
    assert "**4.50 ms** a token in the same run (4.25-5.00)" in bounds
    assert "**1 of 1** single answers keep to it" in bounds
    alone, gap = single.splitlines()[2:]
    assert (
        "| 20.25 | 90.9 (83.3-100.0) | 12.0 | 93.0 | 0.98 | kept | 41.3 | 2.20 (2.20-2.20) | 4.00 | 3.33 | 0 |" in alone
    )
    assert "failed: CoverageGap" in gap
    assert {line.count("|") for line in single.splitlines()} == {17}
    lines = rates.splitlines()
    assert "| 4x2 | exact | 100 | 1 | 20 | 1 | 11.0 (10.0-12.0) | 1.0 | 11.0 | 12.0 | 21.8 | 0.50 | 0.25 |" in lines[2]
    assert "| 220.0 (220.0-220.0, 1 failed) | 20.0 |" in lines[3]
    assert "failed: CoverageGap" in lines[4]
    assert "not measured, the time was over" in lines[5]
    assert {line.count("|") for line in lines} == {15}
    assert failures(result) == ["4x2, exact, 100 Mbit/s, loss 0 %, 50 ms, 1 streams failed: CoverageGap"]
