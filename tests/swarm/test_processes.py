"""The real thing: processes, TLS, libp2p, a DHT, SIGKILL, Ctrl-C. What a user types and what he gets."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
import torch
from jsonschema import validate
from transformers import DeepseekV3ForCausalLM

from shoal.client import ContextLengthExceeded, Sampling, SwarmSettings
from shoal.client.blocking import BlockingSwarm
from tests.checkpoints import SHAPES, dequantized_copy, write_checkpoint
from tests.swarm.capture import LoopbackCapture, alone_on_loopback, entropy_bits
from tests.swarm.node_process import node_process
from tools.schemas import schema_of

pytestmark = pytest.mark.socket

PROMPT_IDS = [5, 17, 3, 90, 41, 8, 8, 61]
MARK = "SHOAL_TEST_MARK"
ORPHAN_TIMEOUT_S = 60.0
"""p2pd ends within seconds when its node was killed; this machine may have much else to do."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("processes") / "model"
    write_checkpoint(directory, SHAPES["ragged_fp8_mtp_sharded"], seed=31)
    return directory


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment of its own for every command of a test; fails if a process of it outlives the test."""
    mark = uuid.uuid4().hex
    write_settings(tmp_path / ".config" / "shoal" / "shoal.toml")
    with TemporaryDirectory(prefix="shoal") as runtime:  # short: a socket's path has 103 bytes
        own = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path), "XDG_RUNTIME_DIR": runtime}
        own |= {"XDG_CONFIG_HOME": str(tmp_path / ".config"), "XDG_STATE_HOME": str(tmp_path / "state")}
        yield {**os.environ, MARK: mark, **own}
    deadline = time.monotonic() + ORPHAN_TIMEOUT_S
    while (alive := marked(mark)) and time.monotonic() < deadline:
        psutil.wait_procs(alive, timeout=0.2)
    assert not alive, f"orphans: {[process.cmdline() for process in alive]}"


def write_settings(path: Path) -> None:
    """A node that works whatever this machine does meanwhile: on battery, on a phone's line, hot, busy."""
    path.parent.mkdir(parents=True)
    own = ("low_priority = false", "on_battery = true", "on_metered = true", "max_temperature_c = 1000.0")
    path.write_text("\n".join(("[node.guest]", *own, "")))


def marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def shoal(environment: dict[str, str], *words: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shoal.cli", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)


@contextmanager
def running_node(environment: dict[str, str], *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A node and its invite token; ends with SIGTERM and must exit 0. See `node_process.py`."""
    own = () if "--join" in words else ("--open",)  # an open swarm's token is no secret and is printed
    with node_process(environment, *own, *words) as (node, said):
        yield node, open_token(said)


def open_token(said: str) -> str:
    """The token of an open swarm, of what its first node said."""
    return re.search(r"shoal1[\w-]+", said).group()  # type: ignore[union-attr]


def oracle_tokens(model: Path, scratch: Path, num_tokens: int) -> list[int]:
    dequantized_copy(model, scratch)
    oracle = DeepseekV3ForCausalLM.from_pretrained(scratch, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        out = oracle.generate(torch.tensor([PROMPT_IDS]), max_new_tokens=num_tokens, do_sample=False, pad_token_id=0)
    return [int(token) for token in out[0, len(PROMPT_IDS) :]]


@pytest.mark.parametrize("channel", ["direct", "libp2p"])
def test_a_demo_of_any_checkpoint_survives_a_kill_with_the_oracles_tokens(
    model: Path, environment: dict[str, str], tmp_path: Path, channel: str
) -> None:
    ids = ",".join(map(str, PROMPT_IDS))
    done = shoal(
        environment, "demo", "--model", str(model), "--prompt-ids", ids, "--max-tokens", "32", "--kill-after", "4",
        "--channel", channel, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["token_ids"] == oracle_tokens(model, tmp_path / "copy", 32)
    validate(result, json.loads(schema_of("demo")))
    assert result["matches_reference"]
    assert result["killed_peer"]
    assert result["failovers"] >= 1
    assert result["recovery_ms"] > 0
    assert result["bytes_sent"] > 0
    assert done.stderr == ""


@pytest.mark.parametrize("channel", ["direct", "libp2p"])
def test_a_stranger_on_the_network_sees_no_prompt_no_text_and_no_tensor(
    environment: dict[str, str], channel: str
) -> None:
    prompt = "The quick brown frog jumps over the lazy capybara"

    def listen() -> tuple[LoopbackCapture, subprocess.CompletedProcess[str]]:
        with LoopbackCapture() as capture:
            words = ("demo", "--prompt", prompt, "--max-tokens", "24", "--channel", channel, "--json")
            return capture, shoal(environment, *words)

    try:
        capture, done = alone_on_loopback(listen)
    except PermissionError:
        pytest.skip("needs CAP_NET_RAW to capture packets")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    seen = b"".join(capture.payloads)
    assert len(seen) >= result["bytes_sent"] + result["bytes_received"], "the capture missed the traffic"
    words = [word for word in (prompt + " " + result["text"]).split() if len(word) > 5]
    assert [word for word in words if word.encode() in seen] == []
    large = b"".join(payload for payload in capture.payloads if len(payload) >= 1024)
    assert entropy_bits(large) > 7.99


def test_run_uses_a_swarm_that_is_up_and_says_all_its_figures(model: Path, environment: dict[str, str]) -> None:
    with running_node(environment, "--model", str(model), "--experts", "all") as (_, token):
        done = shoal(
            environment, "run", "--model", str(model), "--join", token, "--prompt-ids", "5,17,3", "--max-tokens", "8",
            "--json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert len(result["token_ids"]) == 8
        validate(result, json.loads(schema_of("run")))


def test_the_blocking_library_streams_the_same_tokens_and_can_be_left_early(
    model: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    with running_node(environment, "--model", str(model), "--experts", "all") as (_, token):
        settings = SwarmSettings(model=model, join=(token,), cache_dir=tmp_path / "cache")
        with BlockingSwarm(settings) as swarm:
            answer = swarm.generate([5, 17, 3], Sampling(max_tokens=8, ignore_eos=True))
            first = next(iter(swarm.stream([5, 17, 3], Sampling(max_tokens=200, ignore_eos=True))), None)
            streamed = [token.id for token in swarm.stream([5, 17, 3], Sampling(max_tokens=8, ignore_eos=True))]
            assert min(count for layer in swarm.coverage().values() for count in layer.values()) == 1
            with pytest.raises(ContextLengthExceeded):
                swarm.generate([5] * 300)
    assert first is not None
    assert streamed == list(answer.token_ids)
    assert first.id == streamed[0]
    assert answer.holders_used == 1


def test_a_second_node_takes_what_is_rarest(model: Path, environment: dict[str, str]) -> None:
    first = ("--model", str(model), "--experts", "0-3")
    with (
        running_node(environment, *first) as (_, token),
        running_node(environment, "--model", str(model), "--share", "5MB", "--join", token, "--name", "second"),
    ):
        done = shoal(
            environment, "run", "--model", str(model), "--join", token, "--prompt-ids", "5,17,3", "--max-tokens", "4"
        )
        assert done.returncode == 0, done.stderr


def test_an_expert_nobody_holds_is_status_4_and_names_it(model: Path, environment: dict[str, str]) -> None:
    with running_node(environment, "--model", str(model), "--experts", "0-6") as (_, token):
        done = shoal(environment, "run", "--model", str(model), "--join", token, "--prompt-ids", "5")
    assert (done.returncode, done.stdout) == (4, "")
    assert re.fullmatch(r"shoal: nobody reachable holds expert 7 of layer 1; retry after \d+ s\n", done.stderr)


def test_a_swarm_of_another_model_is_status_6(model: Path, environment: dict[str, str], tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_checkpoint(other, SHAPES["plain"], seed=1)
    with running_node(environment, "--model", str(model), "--experts", "all") as (_, token):
        done = shoal(environment, "run", "--model", str(other), "--join", token, "--prompt-ids", "5")
    assert done.returncode == 6
    assert "is for model" in done.stderr


def test_a_port_in_use_is_status_2_for_both_ports(model: Path, environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for flag in ("--port", "--p2p-port"):
            done = shoal(environment, "node", "--model", str(model), "--experts", "0", flag, port)
            assert done.returncode == 2
            assert f"127.0.0.1:{port} is in use" in done.stderr


def test_a_truncated_checkpoint_is_status_6_and_names_the_file(environment: dict[str, str], tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", SHAPES["plain"], seed=5)
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    done = shoal(environment, "demo", "--model", str(tmp_path / "model"), "--prompt-ids", "5")
    assert done.returncode == 6
    assert "model.safetensors" in done.stderr


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("demo", "--model", "/no/such/directory"), 2),
        (("demo", "--nodes", "1"), 2),
        (("demo", "--kill-after", "soon"), 2),
        (("demo", "--prompt-ids", "5,99999999"), 2),
        (("demo", "--max-tokens", "5000"), 2),
        (("run", "hello"), 2),
        (("run", "hello", "--join", "nonsense"), 2),
        (("run", "hello", "--join", "shoal1nonsense"), 2),
        (("node", "--model", "/no/such/directory"), 2),
        (("node", "--experts", "0", "--identity", "/no/such/directory/key"), 1),
        (
            ("run", "hello", "--join", "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"),
            1,
        ),
    ],
    ids=lambda value: "_".join(value)[:40] if isinstance(value, tuple) else str(value),
)
def test_bad_input_is_one_clear_line_and_its_status(
    environment: dict[str, str], words: tuple[str, ...], status: int
) -> None:
    done = shoal(environment, *words)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(("shoal: ", "Usage: "))


@pytest.mark.parametrize("delay_s", [0.1, 0.3, 0.5, 0.7, 1.0, 2.0, 3.0, 4.0, 5.0])
def test_ctrl_c_in_any_phase_ends_everything_without_a_traceback(environment: dict[str, str], delay_s: float) -> None:
    """Ctrl-C goes to the whole foreground process group, so it does here."""
    command = [sys.executable, "-m", "shoal.cli", "demo", "--max-tokens", "1500", "--kill-after", "8"]
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as demo:
        with pytest.raises(subprocess.TimeoutExpired):
            demo.wait(delay_s)
        os.killpg(demo.pid, signal.SIGINT)
        stdout, stderr = demo.communicate(timeout=120)
    assert demo.returncode in (130, -signal.SIGINT), stderr
    assert "Traceback" not in stderr + stdout or "in main" not in stderr  # before main runs, Python itself reports it


@pytest.mark.parametrize("delay_s", [0.5, 1.5, 2.5, 4.0])
def test_ctrl_c_ends_a_node_in_any_phase(model: Path, environment: dict[str, str], delay_s: float) -> None:
    command = [sys.executable, "-m", "shoal.cli", "node", "--model", str(model), "--experts", "all"]
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as node:
        with pytest.raises(subprocess.TimeoutExpired):
            node.wait(delay_s)
        os.killpg(node.pid, signal.SIGINT)
        stdout, stderr = node.communicate(timeout=120)
    assert node.returncode in (0, 130, -signal.SIGINT), stderr
    assert "Traceback" not in stderr + stdout


@pytest.mark.parametrize("delay_s", [0.5, 1.5, 2.5, 4.0])
def test_ctrl_c_ends_a_run_in_any_phase_and_the_node_goes_on(
    model: Path, environment: dict[str, str], delay_s: float
) -> None:
    with running_node(environment, "--model", str(model), "--experts", "all") as (node, token):
        words = ["run", "--model", str(model), "--join", token, "--prompt-ids", "5,17,3", "--max-tokens", "200"]
        command = [sys.executable, "-m", "shoal.cli", *words]
        with subprocess.Popen(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        ) as run:
            time.sleep(delay_s)  # the moment of the interrupt is what is tested; the run may be over by then
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGINT)
            stdout, stderr = run.communicate(timeout=120)
        assert run.returncode in (0, 130, -signal.SIGINT), stderr  # the last: while the interpreter itself ends
        assert "Traceback" not in stderr + stdout
        assert node.poll() is None
