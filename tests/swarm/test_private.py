"""A private swarm of real processes: members get answers, strangers and revoked ones do not; no token shows."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.swarm.test_processes import environment, marked, shoal  # noqa: F401

pytestmark = pytest.mark.socket

LAST = "stop:      Ctrl-C (finishes what it has begun)\n"


def test_a_private_swarm_lets_members_in_until_they_are_revoked_and_shows_no_token(
    environment: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    friend = environment | {"XDG_CONFIG_HOME": str(tmp_path / "friend")}
    asked = ("run", "Once upon a time", "--max-tokens", "2")
    command = [sys.executable, "-m", "shoal.cli", "node", "--experts", "all", "--yes", "--log-level", "debug"]
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as node:
        assert node.stdout is not None
        said = ""
        while not said.endswith(LAST):
            said += (line := node.stdout.readline())
            assert line, said
        try:
            assert shoal(environment, *asked).returncode == 0  # the founder's own programs
            token = shoal(environment, "invite", "--label", "ana").stdout.strip()
            made = json.loads(shoal(environment, "invite", "--list", "--json").stdout)
            assert shoal(friend, *asked).returncode == 2  # knows no swarm
            joined = subprocess.run(
                [sys.executable, "-m", "shoal.cli", "join"], env=friend, input=token, capture_output=True, text=True,
                timeout=300, check=False,
            )  # fmt: skip
            assert joined.returncode == 0, joined.stderr
            member = shoal(friend, *asked)
            assert member.returncode == 0, member.stderr
            lines = [" ".join(process.cmdline()) for process in marked(environment_mark(environment))]
            stranger = shoal(friend, *asked, "--join", json.loads(shoal_join(environment))[0])
            assert stranger.returncode != 0
            assert shoal(environment, "invite", "--revoke", made[0]["id"]).returncode == 0
            assert shoal(friend, *asked).returncode != 0
            assert shoal(environment, *asked).returncode == 0
        finally:
            node.send_signal(signal.SIGTERM)
            said += node.communicate(timeout=120)[0]
    logs = "".join(path.read_text(errors="replace") for path in (tmp_path / "state").rglob("*") if path.is_file())
    secret = re.escape(token[len("shoal2") + 60 : len("shoal2") + 100])
    for text in (said, logs, joined.stdout + joined.stderr, member.stdout + member.stderr, *lines):
        assert "shoal2" not in text
        assert not re.search(secret, text)
    assert lines


def environment_mark(environment: dict[str, str]) -> str:  # noqa: F811
    return environment["SHOAL_TEST_MARK"]


def shoal_join(environment: dict[str, str]) -> str:  # noqa: F811
    """The addresses of the founder's node, without its token: what a stranger may have been told."""
    from shoal.protocol.invite import decode_invite

    path = Path(environment["XDG_CONFIG_HOME"]) / "shoal" / "swarms" / "default.token"
    return json.dumps(list(decode_invite(path.read_text()).bootstrap))
