"""`shoal simulate --local`: what a user types and what he gets. Real processes; the namespaces need root."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from shoal.simulations.wan.namespace import why_no_namespaces
from tests.swarm.test_processes import environment, shoal  # noqa: F401  (the first is a fixture)
from tools.schemas import DIRECTORY

pytestmark = pytest.mark.socket


def simulated(environment: dict[str, str], *words: str) -> dict[str, object]:  # noqa: F811
    """The report of a run, after its schema has accepted it."""
    done = shoal(environment, "simulate", *words, "--json", timeout_s=300)
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    Draft202012Validator(json.loads((DIRECTORY / "simulate-local.json").read_text(encoding="utf-8"))).validate(result)
    return result


def test_two_nodes_that_lose_one_give_the_single_process_tokens_and_leave_no_files(
    environment: dict[str, str],  # noqa: F811
) -> None:
    scratch = Path(environment["XDG_RUNTIME_DIR"])
    words = ("--local", "2", "--kill", "1", "--rtt", "20", "--tokens", "12", "--no-namespaces")
    result = simulated(environment | {"TMPDIR": str(scratch)}, *words)
    assert result["matches_reference"] is True
    assert result["network"] == "channel"
    assert len(result["kills"]) == 1  # type: ignore[arg-type]
    assert result["exchange_ms_p50"] >= 10  # type: ignore[operator]  # the loop's timers count milliseconds
    assert [path.name for path in scratch.iterdir() if path.name.startswith("shoal")] == []


@pytest.mark.skipif(bool(why_no_namespaces()), reason=f"needs network namespaces: {why_no_namespaces()}")
def test_nodes_in_namespaces_are_as_far_away_as_was_asked(environment: dict[str, str]) -> None:  # noqa: F811
    result = simulated(environment, "--local", "2", "--rtt", "10", "--rate", "50", "--tokens", "6")
    assert result["matches_reference"] is True
    assert result["network"] == "namespaces"
    assert result["exchange_ms_p50"] >= 10  # type: ignore[operator]


@pytest.mark.parametrize("words", [("--local", "2", "--kill", "2"), ()])
def test_bad_input_is_one_clear_line_and_starts_nothing(
    environment: dict[str, str],  # noqa: F811
    words: tuple[str, ...],
) -> None:
    done = shoal(environment, "simulate", *words, "--json")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
