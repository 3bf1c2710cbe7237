"""A token that its founder revokes opens no door of the swarm any more, on whatever machine: real processes."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.swarm.test_processes import environment, shoal, write_settings  # noqa: F401

pytestmark = pytest.mark.socket

SHOAL = [sys.executable, "-m", "shoal.cli"]
LAST = "stop:      Ctrl-C (finishes what it has begun)\n"
ASKED = ("run", "Once upon a time", "--max-tokens", "2")
HEARD_TIMEOUT_S = 120.0
"""The member's node hears at its start, or half a minute later."""


@contextmanager
def node(home: dict[str, str]) -> Iterator[None]:
    command = [*SHOAL, "node", "--experts", "all", "--yes"]
    with subprocess.Popen(command, env=home, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        said = ""
        try:
            while not said.endswith(LAST):
                said += (line := process.stdout.readline())
                assert line, said
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=120)


def invited(founder: dict[str, str], home: dict[str, str], label: str) -> None:
    token = shoal(founder, "invite", "--label", label).stdout
    done = subprocess.run(
        [*SHOAL, "join"], env=home, input=token, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_node_of_another_member_hears_of_a_revocation_and_refuses(
    environment: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    with TemporaryDirectory(prefix="shoal") as runtime:
        ana = environment | {"XDG_CONFIG_HOME": str(tmp_path / "ana")}
        ben = environment | {"XDG_CONFIG_HOME": str(tmp_path / "ben"), "XDG_STATE_HOME": str(tmp_path / "ben-state")}
        ben |= {"XDG_RUNTIME_DIR": runtime}
        write_settings(tmp_path / "ben" / "shoal" / "shoal.toml")
        with node(environment):
            invited(environment, ana, "ana")
            invited(environment, ben, "ben")
            made = json.loads(shoal(environment, "invite", "--list", "--json").stdout)
            revoked = shoal(
                environment, "invite", "--revoke", next(each["id"] for each in made if each["label"] == "ana")
            )
            assert revoked.returncode == 0, revoked.stderr
            with node(ben):
                deadline = time.monotonic() + HEARD_TIMEOUT_S
                swarms = tmp_path / "ben" / "shoal" / "swarms"
                while not list(swarms.glob("*.revocations")):
                    assert time.monotonic() < deadline, "the member's node heard nothing"
                    time.sleep(0.2)
                assert shoal(ana, *ASKED).returncode != 0  # ben's node holds everything and would have answered
                assert shoal(ben, *ASKED).returncode == 0
