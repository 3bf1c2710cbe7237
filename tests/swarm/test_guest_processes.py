"""A node on its owner's machine, as its owner meets it: verbs, pause in mid-answer, logs, signals. Real processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from jsonschema import Draft202012Validator

from tests.swarm.node_process import LAST, node_process
from tests.swarm.test_processes import environment, open_token, running_node, shoal  # noqa: F401  (the first is a fixture)
from tools.schemas import DIRECTORY

pytestmark = pytest.mark.socket

CANARY = "xylophonist marmalade"
LONG = ("--max-tokens", "600")  # greedily, a small model repeats itself and does not end before
Environment = dict[str, str]


def printed(environment: Environment, *words: str, status: int = 0) -> dict[str, object]:  # noqa: F811
    """What a reading verb prints with --json, after its schema has accepted it."""
    done = shoal(environment, *words, "--json")
    assert done.returncode == status, done.stderr
    name = "-".join(word for word in words if not word.startswith("-") and word not in NAMES)
    schema = json.loads((DIRECTORY / f"{SCHEMAS.get(name, name)}.json").read_text(encoding="utf-8"))
    said: dict[str, object] = {}
    for line in done.stdout.splitlines():
        said = json.loads(line)
        Draft202012Validator(schema).validate(said)
    return said


NAMES = {"first", "second", "2h"}
SCHEMAS = {"pause": "status", "resume": "status", "stop": "status"}


@contextmanager
def answering(environment: Environment, token: str) -> Iterator[subprocess.Popen[str]]:  # noqa: F811
    """A long answer that is being streamed; its first words have come."""
    command = [sys.executable, "-u", "-m", "shoal.cli", "run", "Once upon a time", "--join", token, *LONG]
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as answer:
        assert answer.stdout is not None
        answer.stdout.read(20)
        try:
            yield answer
        finally:
            answer.kill()


def test_every_reading_verb_prints_what_its_schema_says(environment: Environment) -> None:  # noqa: F811
    with running_node(environment, "--experts", "0-7", "--up", "50MB", "--name", "first") as (node, _):
        status = printed(environment, "status", "--name", "first")
        assert (status["state"], status["pid"], status["num_experts"]) == ("serving", node.pid, 40)
        assert status["limits"]["up_bytes_per_s"] == 50_000_000  # type: ignore[index]
        coverage = printed(environment, "coverage", "--name", "first")
        assert (coverage["num_holders"], coverage["num_missing"]) == (1, 120)
        assert printed(environment, "peers", "--name", "first")["peers"][0]["role"] == "self"  # type: ignore[index]
        assert printed(environment, "logs", "--name", "first")["event"] == "node_ready"
        doctor = printed(environment, "doctor", "--name", "first", status=1)  # nobody holds 120 experts
        levels = {each["check"]: each["level"] for each in doctor["findings"]}  # type: ignore[attr-defined]
        assert (levels["node"], levels["coverage"]) == ("ok", "fail")
        assert printed(environment, "pause", "2h", "--name", "first")["pause_reason"] == "user"
        assert printed(environment, "resume", "--name", "first")["state"] == "serving"
        again = shoal(environment, "node", "--experts", "0", "--name", "first")
        assert (again.returncode, "--name another" in again.stderr) == (2, True)
        assert printed(environment, "stop", "--name", "first")["state"] == "draining"
        assert node.wait(30) == 0
    assert printed(environment, "logs", "--name", "first")["event"] == "node_stopped"  # from the file


@pytest.mark.parametrize("verb", ["status", "peers", "coverage", "pause", "resume", "stop"])
def test_without_a_node_a_verb_says_so_and_exits_3(environment: Environment, verb: str) -> None:  # noqa: F811
    done = shoal(environment, verb)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "shoal: no node called node runs on this machine; try: shoal node\n"


def test_a_service_is_written_and_removed(environment: Environment) -> None:  # noqa: F811
    assert printed(environment, "service", "status", status=3)["is_installed"] is False
    written = shoal(environment, "service", "install", "--no-start")
    assert written.returncode == 0, written.stderr
    assert printed(environment, "service", "status", status=3)["is_installed"] is True
    assert shoal(environment, "service", "uninstall").returncode == 0
    assert shoal(environment, "service", "uninstall").returncode == 2


def test_a_prompt_is_nowhere_in_what_a_node_writes_and_a_guest_has_the_lowest_priority(
    environment: Environment,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    home, output = Path(environment["HOME"]), tmp_path_factory.mktemp("said")
    words = ("--open", "--experts", "all", "--log-level", "debug", "--low-priority")
    with node_process(environment, *words, output=output) as (node, said):
        token = open_token(said)
        family = [psutil.Process(node.pid), *psutil.Process(node.pid).children()]
        assert [process.nice() for process in family] == [19] * len(family)
        asked = ("run", f"{CANARY} {CANARY}", "--join", token, "--max-tokens", "24", "--temperature", "0.5", "--json")
        done = shoal(environment, *asked)
        assert done.returncode == 0, done.stderr
        followed = shoal(environment, "logs", "-n", "10000", "--json").stdout
        assert '"event": "request_served"' in followed
    answer = json.loads(done.stdout)["text"]
    secrets = [*CANARY.split(), *(word for word in answer.split() if len(word) > 6), token]
    files = [file for file in home.rglob("*") if file.is_file()]
    assert any(file.name == "node.log" for file in files)
    printed_since = (output / "stdout").read_text(encoding="utf-8").partition(LAST)[2]
    texts = {"stdout": printed_since, "stderr": (output / "stderr").read_text(encoding="utf-8"), "logs": followed}
    texts |= {str(file): file.read_bytes().decode("latin-1") for file in files}
    assert [(where, secret) for where, text in texts.items() for secret in secrets if secret in text] == []


def test_a_pause_in_mid_answer_is_not_noticed_by_the_one_who_reads(environment: Environment) -> None:  # noqa: F811
    with (
        running_node(environment, "--experts", "all", "--name", "first") as (_, token),
        running_node(environment, "--experts", "all", "--name", "second", "--join", token),
    ):
        undisturbed = shoal(environment, "run", "Once upon a time", "--join", token, *LONG)
        assert undisturbed.returncode == 0, undisturbed.stderr
        served = {name: printed(environment, "status", "--name", name)["requests_served"] for name in NAMES - {"2h"}}
        with answering(environment, token) as answer:
            busy = max(
                served,
                key=lambda name: printed(environment, "status", "--name", name)["requests_served"] - served[name],  # type: ignore[operator]
            )
            paused = printed(environment, "pause", "2h", "--name", busy)
            assert (paused["state"], paused["queue_s"]) == ("paused", 0.0)
            assert answer.poll() is None, "the answer was over before the pause"
            rest, errors = answer.communicate(timeout=300)
        assert (answer.returncode, errors) == (0, "")
        assert undisturbed.stdout.endswith(rest)
        later = printed(environment, "status", "--name", busy)
        assert (later["state"], later["requests_served"]) == ("paused", paused["requests_served"])
        assert printed(environment, "resume", "--name", busy)["state"] == "serving"


def test_a_pause_outlives_a_node_that_is_killed(environment: Environment) -> None:  # noqa: F811
    named = ("--experts", "0", "--name", "first")
    with running_node(environment, *named) as (node, _):
        until_s = printed(environment, "pause", "2h", "--name", "first")["paused_until_s"]
        node.kill()
    with running_node(environment, *named) as (node, _):
        again = printed(environment, "status", "--name", "first")
        assert (again["state"], again["pause_reason"], again["paused_until_s"]) == ("paused", "user", until_s)
        assert printed(environment, "resume", "--name", "first")["state"] == "serving"
        node.kill()
    with running_node(environment, *named):
        assert printed(environment, "status", "--name", "first")["state"] == "serving"


def test_a_second_sigterm_does_not_wait_for_a_client_that_sleeps(environment: Environment) -> None:  # noqa: F811
    with running_node(environment, "--experts", "all") as (node, token), answering(environment, token) as answer:
        os.kill(answer.pid, signal.SIGSTOP)
        node.send_signal(signal.SIGTERM)
        assert printed(environment, "status")["state"] == "draining"
        node.send_signal(signal.SIGTERM)
        assert node.wait(30) == 0
        os.kill(answer.pid, signal.SIGCONT)
    last = printed(environment, "logs")
    assert (last["event"], last["fields"]) == ("node_stopped", {"error": "Cancelled"})
