"""Processes that work through seeds: each seed has an outcome, and no process outlives whom it works for."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from shoal.simulations.virtual.crew import Crew, WorkerDied
from tests.simulations.virtual.crew_work import DIES_OF, STATUS, nothing, squares, whose

END_S = 120.0

ASKS_AND_IS_KILLED = """
import os, signal
from shoal.simulations.virtual.crew import Crew
from tests.simulations.virtual.crew_work import whose
with Crew(2, whose, lambda seed, status: -1) as crew:
    seeds = iter(range(8))
    print(*{*crew.run(lambda: next(seeds, None))}, *(worker.process.pid for worker in crew._workers), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def up_to(count: int) -> Callable[[], int | None]:
    seeds = iter(range(count))
    return lambda: next(seeds, None)


@pytest.mark.timeout(300)
def test_every_seed_has_one_outcome_and_one_that_kills_its_process_is_told_as_such() -> None:
    with Crew(2, squares, lambda seed, status: (seed, -status)) as crew:
        results = sorted(crew.run(up_to(12)))
    assert results == [(seed, -STATUS if seed == DIES_OF else seed * seed) for seed in range(12)]


@pytest.mark.timeout(300)
def test_a_process_is_used_for_many_seeds_and_ends_with_its_crew() -> None:
    with Crew(1, whose, lambda seed, status: -1) as crew:
        pids = list(crew.run(up_to(5)))
        pids += crew.run(up_to(3))
    assert len(pids) == 8
    assert len(set(pids)) == 1
    assert not psutil.pid_exists(pids[0])


@pytest.mark.timeout(300)
def test_processes_that_can_not_begin_are_an_error_and_not_so_many_failed_seeds() -> None:
    with (
        Crew(1, nothing, lambda seed, status: seed) as crew,
        pytest.raises(WorkerDied, match=f"status {STATUS} at its start"),
    ):
        list(crew.run(up_to(3)))


@pytest.mark.timeout(300)
def test_workers_go_when_whom_they_work_for_is_killed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASKS_AND_IS_KILLED],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    pids = {int(pid) for pid in done.stdout.split()}
    assert pids, done.stderr
    left = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    __, alive = psutil.wait_procs(left, timeout=END_S)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
