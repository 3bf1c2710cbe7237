"""Temporary files of simulations that were killed do not stay."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from shoal.simulations.scratch import scratch_directory, temporary_files_in


def test_what_a_killed_simulation_left_is_removed_and_what_a_living_one_has_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    dead, alive = tmp_path / f"shoal-{gone.pid}-0", tmp_path / f"shoal-{os.getpid()}-0"
    for directory in (dead, alive):
        directory.mkdir()
    with scratch_directory() as ours, temporary_files_in(ours):
        assert sorted(tmp_path.iterdir()) == sorted([alive, ours])
        assert Path(tempfile.mkdtemp()).parent == ours
    assert list(tmp_path.iterdir()) == [alive]
    assert tempfile.gettempdir() == str(tmp_path)
