"""torch's threads sleep between operations in every process of `shoal`, unless a user or a baseline says otherwise."""

import os

import pytest
from typer.testing import CliRunner

from shoal.cli.idle_threads import WAIT_POLICY
from shoal.cli.main import app


def _policy_under(monkeypatch: pytest.MonkeyPatch, words: list[str], before: str | None = None) -> str | None:
    environ = dict(os.environ)
    environ.pop(WAIT_POLICY, None)
    if before is not None:
        environ[WAIT_POLICY] = before
    monkeypatch.setattr(os, "environ", environ)
    assert CliRunner().invoke(app, words).exit_code == 0
    return environ.get(WAIT_POLICY)


@pytest.mark.parametrize("words", [["version"], ["node", "--help"], ["bench", "trunk", "--help"]])
def test_a_verb_lets_idle_threads_sleep(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    assert _policy_under(monkeypatch, words) == "PASSIVE"


def test_the_kernels_baseline_runs_as_torch_is_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _policy_under(monkeypatch, ["bench", "kernels", "--help"]) is None


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _policy_under(monkeypatch, ["version"], before="ACTIVE") == "ACTIVE"
