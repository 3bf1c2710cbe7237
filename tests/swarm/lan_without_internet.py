"""Three machines on a LAN without an uplink, and nobody names an address: `make test-lan`, for it needs root.

Each machine is a network namespace with one card on a bridge and no default route. The whole command line runs inside.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import mkdtemp

import pytest

from shoal.protocol.invite import Invite, decode_invite, encode_invite
from tests.swarm.namespaces import NETWORK, inside, lan, why_not
from tests.swarm.test_processes import environment, write_settings  # noqa: F401

pytestmark = [pytest.mark.socket, pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can run")]

SHOAL = [sys.executable, "-m", "shoal.cli"]
LAST = "stop:      Ctrl-C (finishes what it has begun)\n"
TIMEOUT_S = 100
ASKED = ("run", "Once upon a time", "--max-tokens", "4", "--json")
HALVES = ("0-15", "16-31")
"""Of the demonstration model's 32 experts a layer: an answer needs both machines."""


@pytest.fixture
def homes(environment: dict[str, str], tmp_path: Path) -> Iterator[list[dict[str, str]]]:  # noqa: F811
    """Three users who share nothing but the cache of hashes."""
    with ExitStack() as stack:
        found = []
        for name in ("ana", "ben", "cho"):
            home, runtime = tmp_path / name, mkdtemp(prefix="shoal")
            stack.callback(lambda path: subprocess.run(["rm", "-r", path], check=True), runtime)
            write_settings(home / "shoal" / "shoal.toml")
            found.append(
                environment
                | {"HOME": str(home), "XDG_CONFIG_HOME": str(home), "XDG_STATE_HOME": str(home / "state")}
                | {"XDG_RUNTIME_DIR": runtime}
            )
        yield found


@contextmanager
def node(machine: str, home: dict[str, str], *words: str) -> Iterator[str]:
    """A node that is up; what it said."""
    command = inside(machine, *SHOAL, "node", "--host", "0.0.0.0", "--yes", *words)
    with subprocess.Popen(command, env=home, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        said = ""
        try:
            while not said.endswith(LAST):
                said += (line := process.stdout.readline())
                assert line, said
            yield said
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0


def shoal(machine: str, home: dict[str, str], *words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    command = inside(machine, *SHOAL, *words)
    return subprocess.run(
        command, env=home, input=typed, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def test_members_of_a_private_swarm_find_it_though_their_token_leads_nowhere(homes: list[dict[str, str]]) -> None:
    ana, ben, cho = homes
    with lan(3) as (a, b, c), node(a, ana, "--experts", HALVES[0]):
        invite = decode_invite(shoal(a, ana, "invite").stdout.strip())
        address = f"/ip4/{NETWORK}.250/tcp/4001/p2p/{invite.bootstrap[0].rpartition('/p2p/')[2]}"
        stale = encode_invite(Invite(invite.model_root, (address,), invite.membership))
        assert shoal(b, ben, "join", typed=stale).returncode == 0
        assert shoal(c, cho, "join", typed=stale).returncode == 0
        with node(b, ben, "--experts", HALVES[1]):
            answered = shoal(c, cho, *ASKED)
            assert answered.returncode == 0, answered.stderr
            assert json.loads(answered.stdout)["holders_used"] == 2
            seen = json.loads(shoal(c, cho, "peers", "--json").stdout)["peers"]
            assert [peer["role"] for peer in seen] == ["announced", "announced"]
            assert shoal(c, cho, *ASKED, "--lan", "off").returncode == 1


def test_an_open_swarm_is_found_by_who_asks_for_any_and_by_nobody_else(homes: list[dict[str, str]]) -> None:
    ana, ben, cho = homes
    with (
        lan(3) as (a, b, c),
        node(a, ana, "--open", "--experts", HALVES[0]),
        node(b, ben, "--open", "--experts", HALVES[1]),
    ):
        answered = shoal(c, cho, *ASKED, "--lan", "any")
        assert answered.returncode == 0, answered.stderr
        assert json.loads(answered.stdout)["holders_used"] == 2
        unasked = shoal(c, cho, *ASKED)
        assert (unasked.returncode, unasked.stdout) == (2, "")
        assert "--lan any" in unasked.stderr


def test_a_lan_without_a_swarm_is_one_clear_line(homes: list[dict[str, str]]) -> None:
    with lan(1) as (alone,):
        found = shoal(alone, homes[0], *ASKED, "--lan", "any")
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr == "shoal: nobody of this swarm answers on this LAN\n"
