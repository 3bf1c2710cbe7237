"""How a bad day is judged; the days themselves are `make chaos`, which needs root and minutes."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from shoal.protocol.errors import InvalidRequest
from shoal.protocol.ids import PeerId
from shoal.simulations.chaos.run import ChaosReport, ChaosSettings, ScenarioResult, _judged, check
from shoal.simulations.chaos.scenarios import SCENARIOS
from shoal.simulations.chaos.table import table
from shoal.simulations.chronicle import Chronicle, Fault, Replaced, TokenTime

VICTIM = PeerId("victim")
USUAL_S, RTT_MS = 0.2, 50.0


def judged(
    name: str, extra_s: float = 0.0, lost: int = 0, wrong: int = 0, problem: str | None = None
) -> ScenarioResult:
    """Eleven tokens of 200 ms, of which the sixth meets a fault and takes `extra_s` longer; an exchange takes 55 ms."""
    chronicle = Chronicle()
    ends = [USUAL_S * (i + 1) + (extra_s if i >= 5 else 0.0) for i in range(11)]
    chronicle.tokens = [TokenTime(since, until) for since, until in zip([0.0, *ends], ends, strict=False)]
    chronicle.num_tokens = len(ends)
    chronicle.faults = [Fault(1.01, frozenset({VICTIM}), is_death=True)]
    chronicle.replaced = [Replaced(1.02, VICTIM, 1000 * extra_s)]
    chronicle.exchanges_ms = [54.0, 55.0, 56.0]
    answers = SimpleNamespace(token_ids=[[1, 2]], lost=lost, problem=problem)
    return _judged(name, RTT_MS, chronicle, answers, wrong, ["a note"], 1.0)  # type: ignore[arg-type]


def test_recovery_is_the_extra_time_of_the_token_that_met_the_fault_in_round_trips() -> None:
    result = judged("kill30", extra_s=0.1)
    assert result.recovery_rtts == (pytest.approx(2.0),)
    assert result.promised_rtts == pytest.approx(2.5 + 5 / 50)
    assert result.slow_tokens == (1,)
    assert (result.before.num_tokens, result.during.num_tokens, result.after.num_tokens) == (5, 1, 5)
    assert result.is_kept


@pytest.mark.parametrize(
    ("broken", "is_kept"),
    [
        ({"extra_s": 0.14}, False),
        ({"lost": 1}, False),
        ({"wrong": 1}, False),
        ({"problem": "CoverageGap"}, False),
        ({}, True),
    ],
)
def test_a_promise_is_broken_by_a_lost_token_a_wrong_one_an_error_and_a_slow_recovery(
    broken: dict[str, float | int | str], is_kept: bool
) -> None:
    assert judged("kill30", **broken).is_kept is is_kept  # type: ignore[arg-type]


def test_where_no_time_is_promised_none_is_judged() -> None:
    assert judged("slow", extra_s=30.0).is_kept


def test_the_table_has_a_row_a_scenario_and_says_what_was_noted_and_where() -> None:
    results = (judged("kill30"), judged("slow", problem="Busy: all"))
    machine: dict[str, str | int] = {"cpu": "a processor", "cores": 2, "kernel": "Linux"}
    shown = table(ChaosReport("abc", machine, 6, 2, (0.5, 1.5), results))
    assert len([line for line in shown.splitlines() if line.startswith(("| kill30", "| slow"))]) == 2
    for words in ("kill30: a note", "slow: Busy: all", "commit abc", "load 0.5", " NO |"):
        assert words in shown


def test_scenarios_that_are_none_and_swarms_that_are_too_small_are_refused_before_anything_starts() -> None:
    with pytest.raises(InvalidRequest, match=f"flood: scenarios are {', '.join(SCENARIOS)}"):
        check(["kill30", "flood"], ChaosSettings(Path()))
    for settings in (ChaosSettings(Path(), num_nodes=5), ChaosSettings(Path(), replicas=1)):
        with pytest.raises(InvalidRequest, match="six nodes and two replicas"):
            check(["kill30"], settings)


def test_a_wrong_clock_is_wrong_under_every_name_that_somebody_keeps_it() -> None:
    """In a process of its own, whose clock it is."""
    program = (
        "import time; kept = time.time; true = time.monotonic\n"
        "from shoal.simulations.node_process import shift_clock\n"
        "before = kept(); shift_clock(3600); assert time.time() - before >= 3600; assert kept() - before >= 3600\n"
        "assert time.monotonic is true"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
