"""The benchmark over networks measures the cells that it is told to, in bounded time, and says what it could not.

Run: pytest tests/simulations/test_bench_wan.py
"""

import json
from pathlib import Path

import pytest

from shoal.protocol.errors import InvalidRequest
from shoal.simulations.bench.cpu_shares import CpuShares
from shoal.simulations.bench.wan import Taken, _summary, write
from shoal.simulations.bench.wan_settings import OUT, QUICK, Cell, Said, WanSettings, parse
from shoal.simulations.bench.wan_table import table


def test_it_measures_what_it_is_told_to() -> None:
    assert parse([]) == Said(WanSettings(), False, OUT)
    assert parse(["--quick", "--json"]) == Said(QUICK, True, OUT)
    settings = parse(
        ["--rtt", "5", "--loss", "0,1", "--streams", "2", "--mbit", "20", "--activations", "exact,int8"]
    ).settings
    cells = list(settings.cells())
    assert [(cell.rtt_ms, cell.loss, cell.streams) for cell in cells] == [(5, 0, 2), (5, 0.01, 2)]
    assert cells[0].link.rate_bytes_per_s == 2.5e6
    assert settings.activations == ("exact", "int8")


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
        WanSettings(tokens=2),
        WanSettings(minutes=0),
        WanSettings(activations=("fp3",)),
    ],
)
def test_what_cannot_be_measured_is_refused(settings: WanSettings) -> None:
    with pytest.raises(InvalidRequest):
        settings.check()


def test_both_forms_are_written_and_say_what_failed_and_what_had_no_time(tmp_path: Path) -> None:
    def taken(tokens_per_s: float) -> Taken:
        return Taken(tokens_per_s, (10.0, 12.0), 21_800.0, CpuShares(0.5, 0.25, 0.125))

    one, many = Cell(20, 0.01, 100, 1), Cell(20, 0.01, 100, 32)
    rows = [
        _summary(one, [taken(10.0), taken(12.0)], [], 4),
        _summary(many, [taken(220.0)], ["TimeoutError"], 4),
        _summary(Cell(50, 0, 100, 1), [], ["CoverageGap"], 4),
        _summary(Cell(50, 0, 100, 8), [], [], 4),
    ]
    result = {
        "machine": "m", "commit": "c", "tcp": "reno", "moe_layers": 4, "nodes": 4, "tokens": 24, "rounds": 2,
        "seconds": 100.0, "rows": [{"activations": "exact"} | row for row in rows],
    }  # fmt: skip
    write(result, tmp_path / "out")
    shown = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert shown == table(result) + "\n"
    assert json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8")) == result
    lines = shown.splitlines()
    assert "| exact | 100 | 1 | 20 | 1 | 11.0 (10.0-12.0) | 1.0 | 11.0 | 12.0 | 80 | 21.8 | 0.50 | 0.25 |" in lines[4]
    assert "| 220.0 (220.0-220.0, 1 failed) | 20.0 |" in lines[5]
    assert "failed: CoverageGap" in lines[6]
    assert "not measured, the time was over" in lines[7]
    assert {line.count("|") for line in lines[2:]} == {15}
