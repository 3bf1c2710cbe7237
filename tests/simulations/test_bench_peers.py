"""The comparison with other people's kernels: what it asks of members, and that a peer that fails is only reported."""

import os
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from shoal.experts.family import ExpertSpec
from shoal.kernels import cpu
from shoal.protocol.messages import WeightFormat
from shoal.simulations.bench.kernel_errors import distance
from shoal.simulations.bench.peers import compare, members, process, worker
from shoal.simulations.bench.peers.environments import Environment, NotAvailable, environment, importable
from shoal.simulations.bench.peers.members import BASELINE, HERE, PEERS, MemberSpec, ours
from shoal.simulations.bench.peers.ours import Ours
from shoal.simulations.bench.peers.torch_ops import VARIANTS, TorchOps
from shoal.simulations.bench.quantizers import gaussian_expert, output

HIDDEN, INTER = 256, 128
SPEC = ExpertSpec(HIDDEN, INTER)


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (worker, compare):
        monkeypatch.setattr(module, "HIDDEN", HIDDEN)
    monkeypatch.setattr(worker, "ROTATED_BYTES", 200_000)
    monkeypatch.setattr("shoal.simulations.bench.peers.ours.SPEC", SPEC)


def _task(variant: str) -> worker.Task:
    given = gaussian_expert(SPEC)
    return worker.Task(variant, 1, {name: weight.bfloat16().float().numpy() for name, weight in given.items()})


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_torchs_operators_compute_the_expert_whose_weights_they_say_they_hold(variant: str) -> None:
    threads = torch.get_num_threads()
    try:
        member = TorchOps(_task(variant))
        x = worker.rows(8)
        member.prepare(x)(3)
    finally:
        torch.set_num_threads(threads)
    exact = output({n: torch.from_numpy(w) for n, w in member.held.items()}, torch.from_numpy(x).double())
    bound = 0.03 if variant == "int8dynamic" else 6e-3  # rows in int8 cost 2 %
    assert distance(torch.from_numpy(member.output()), exact) < bound


@pytest.mark.usefixtures("_small")
@pytest.mark.skipif(not cpu.is_available(), reason="needs the C++ kernels, which were not built")
@pytest.mark.parametrize("weight_format", list(PEERS))
def test_ours_runs_in_every_format_that_has_peers(weight_format: WeightFormat) -> None:
    threads = torch.get_num_threads()
    try:
        member = Ours(_task(ours(weight_format).variant))
        x = worker.rows(2)
        member.prepare(x)(1)
    finally:
        torch.set_num_threads(threads)
    exact = output({n: torch.from_numpy(w) for n, w in member.held.items()}, torch.from_numpy(x).double())
    assert distance(torch.from_numpy(member.output()), exact) < 5e-3


def test_rows_are_rounded_to_bf16_as_torch_does() -> None:
    values = np.random.default_rng(0).standard_normal(4096, dtype=np.float32)
    assert torch.equal(torch.from_numpy(worker.to_bf16(values)), torch.from_numpy(values).bfloat16().float())


def test_copies_are_beyond_any_cache() -> None:
    assert worker.num_copies(44_000_000) * 44_000_000 >= 900_000_000


def test_a_peers_interpreter_finds_itsprograms_without_our_dependencies(tmp_path: Path) -> None:
    """What they import, from a folder that has nothing but shoal's sources."""
    modules = importable(tmp_path)
    names = {line.split()[1].split(".")[0] for name in ("worker", "ggml", "ggml_library") for line in _imports(name)}
    assert names <= {"shoal", "numpy", *sys.stdlib_module_names}
    assert (modules / "shoal" / "simulations" / "bench" / "peers" / "worker.py").exists()


def _imports(name: str) -> list[str]:
    text = (Path(worker.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
    assert all("shoal.simulations.bench.peers." in line for line in lines if " shoal" in line)
    return lines


def test_an_environment_that_can_not_be_made_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(NotAvailable, match=r"python: .*No such file"):
        environment("ggml", tmp_path, tmp_path)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """Members that are scripts of a few lines, in the place of the real ones."""
    package = tmp_path / "fakes"
    package.mkdir()
    for name, body in FAKES.items():
        (package / f"{name}.py").write_text(FAKE_HEAD + body, encoding="utf-8")
    monkeypatch.setattr(process, "__package__", "fakes")
    return Environment(Path(sys.executable), {"PYTHONPATH": str(tmp_path)})


FAKE_HEAD = "import sys, json\ndef say(**reply): print(json.dumps(reply), flush=True)\n"
FAKES = {
    "answers": "say(about='fine')\nfor line in sys.stdin: say(seconds=[0.5, 0.25])\n",
    "crashes": "say(about='fine')\nsys.stdin.readline()\nimport os\nos.kill(os.getpid(), 11)\n",
    "refuses": "sys.exit('no such instruction')\n",
}


@pytest.mark.socket
def test_a_member_stands_still_until_it_is_asked(programs: Environment, tmp_path: Path) -> None:
    with process.MemberProcess(MemberSpec("a", HERE, "answers", "x"), programs, tmp_path, 1) as member:
        member.wait_until_ready()
        assert _state(member) == "T"
        assert member.ask({"first": 0, "calls": 3}) == {"seconds": [0.5, 0.25]}
        assert _state(member) == "T"


def _state(member: process.MemberProcess) -> str:
    """As the kernel sees it; a signal to stop is on its way for a moment."""
    os.waitid(os.P_PID, member._process.pid, os.WSTOPPED | os.WNOWAIT)
    return Path(f"/proc/{member._process.pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]


@pytest.mark.socket
def test_a_member_that_crashes_or_refuses_says_how_it_ended(programs: Environment, tmp_path: Path) -> None:
    with ExitStack() as stack:
        refusing, crashing = (
            stack.enter_context(process.MemberProcess(MemberSpec(n, HERE, n, "x"), programs, tmp_path, 1))
            for n in ("refuses", "crashes")
        )
        with pytest.raises(NotAvailable, match="ended with status 1: no such instruction"):
            refusing.wait_until_ready()
        crashing.wait_until_ready()
        with pytest.raises(NotAvailable, match="ended by SIGSEGV"):
            crashing.ask({"first": 0, "calls": 3})


def test_the_table_has_a_line_for_who_is_not_available() -> None:
    row = {
        "format": "mxfp4", "member": "shoal", "about": "cpu", "tokens": 1, "ms": 1.0, "spread_ms": 0.1, "best_ms": 0.9,
        "ratio": 0.5, "ratio_spread": 0.01, "error": None, "whole_error": 0.2,
    }  # fmt: skip
    missing = {"format": "mxfp4", "member": "kt-kernel mxfp4", "not_available": "ended by SIGILL"}
    printed = compare.table({"machine": {}, "commit": "abc", "threads": 2, "rows": [row, missing]})
    assert "kt-kernel mxfp4             not available: ended by SIGILL" in printed
    assert "licences: shoal Apache-2.0" in printed
    assert "shoal: cpu" in printed


def test_every_licence_is_stated() -> None:
    peers = {BASELINE, *(spec for specs in PEERS.values() for spec in specs)}
    assert {spec.name.split()[0] for spec in peers} | {"shoal"} == set(members.LICENCES)
