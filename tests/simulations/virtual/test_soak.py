"""`shoal simulate seeds --resume`: ended anyhow, it goes on, and in the end it is as if nobody had ended it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from shoal.simulations.virtual.ledger import Ledger
from shoal.simulations.virtual.program import program_version
from shoal.simulations.virtual.run import Oracle, run_seed
from shoal.simulations.virtual.soak import demo_model_in_memory

END_S = 300.0
LOOK_EVERY_S = 0.1
FIRST = 3
MORE = 4
"""Seeds that are left to the second run."""


@contextmanager
def simulate_seeds(state: Path, count: int, home: Path) -> "Iterator[subprocess.Popen[str]]":
    words = ["simulate", "seeds", "--from", str(FIRST), "--count", str(count), "--jobs", "1", "--resume", str(state)]
    with subprocess.Popen(
        [sys.executable, "-m", "shoal.cli", *words, "--json"],
        env={"PATH": os.environ["PATH"], "HOME": str(home), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_ended_goes_on_and_comes_to_the_same(tmp_path: Path, how: signal.Signals) -> None:
    state = tmp_path / "state"
    with simulate_seeds(state, 1_000_000, tmp_path) as begun:
        while not state.exists():
            with suppress(subprocess.TimeoutExpired):
                pytest.fail(f"ended with {begun.wait(LOOK_EVERY_S)}")
        workers = psutil.Process(begun.pid).children(recursive=True)
        begun.send_signal(how)
        assert begun.wait(END_S) == (130 if how is signal.SIGINT else -how)
    __, alive = psutil.wait_procs(workers, timeout=END_S)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
    done = json.loads(state.read_text(encoding="utf-8"))["next"] - FIRST
    assert done > 0
    with simulate_seeds(state, done + MORE, tmp_path) as again:
        told, complaint = again.communicate(timeout=END_S)
    assert again.returncode == 0, complaint
    with demo_model_in_memory(tmp_path) as model, Ledger(FIRST, FIRST + done + MORE) as ledger:
        oracle = Oracle(model)
        while (seed := ledger.hand_out()) is not None:
            ledger.add(replace(run_seed(model, oracle, seed), events=[]))
    assert json.loads(told) == ledger.result.as_json()


def test_a_changed_program_is_another_one_and_an_unchanged_one_is_not() -> None:
    assert program_version() == program_version()
    assert len(program_version()) == 16
