"""The comparison with llama.cpp's RPC: what is counted, said and refused. Measuring needs its environment."""

import asyncio
import os
import socket
import sys
import tarfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shoal.client.engine.generate import Engine
from shoal.simulations.bench.peers import environments, rpc_servers, worker
from shoal.simulations.bench.peers.environments import NotAvailable
from shoal.simulations.bench.peers.rpc_kill import without_folders
from shoal.simulations.bench.peers.rpc_sides import Answers, num_equal, ours
from shoal.simulations.bench.peers.rpc_table import round_trips, table
from shoal.simulations.bench.peers.small_model import PROMPT_IDS, prompt_of


@dataclass
class _FakeEngine:
    """Answers with the prompt itself."""

    asked: list[list[int]]

    async def stream(self, prompt: Sequence[int], sampling: object) -> AsyncIterator[SimpleNamespace]:
        self.asked.append(list(prompt))
        for number in prompt:
            yield SimpleNamespace(id=number)


def test_streams_have_prompts_of_their_own_and_keep_their_order() -> None:
    engine = _FakeEngine([])
    answers = asyncio.run(ours(cast(Engine, engine), len(PROMPT_IDS), 3))
    assert answers.ids == tuple(tuple(prompt_of(stream)) for stream in range(3))
    assert len({tuple(prompt) for prompt in engine.asked}) == 3
    assert prompt_of(0) == PROMPT_IDS
    assert answers.token_ms >= 0


def test_a_stream_counts_as_equal_only_if_every_measurement_of_it_is() -> None:
    same, other = Answers(((1, 2), (3, 4)), 1.0), Answers(((1, 2), (3, 5)), 1.0)
    assert num_equal([same, same]) == (2, 2)
    assert num_equal([same, other, same]) == (1, 2)


def _row(system: str, machines: int, rtt_ms: float, token_ms: float, streams: int = 1) -> dict[str, Any]:
    return {
        "system": system, "network": "namespaces", "machines": machines, "rtt_ms": rtt_ms, "streams": streams,
        "token_ms": token_ms, "token_ms_range": [token_ms, token_ms], "tokens_per_s": 1000 / token_ms,
        "ratio": 1.0, "ratio_range": [1.0, 1.0], "equal_streams": streams, "all_streams": streams,
    }  # fmt: skip


def _result(*rows: dict[str, Any]) -> dict[str, object]:
    memory = {
        "network": "loopback", "machines": 2, "their_model_bytes": [2**20], "their_process_bytes": [3 * 2**20],
        "our_process_bytes": [5 * 2**20],
    }  # fmt: skip
    return {
        "machine": {}, "commit": "c", "congestion_control": "reno", "tokens": 8, "rounds": 1, "seconds": 1.0,
        "rows": list(rows), "memory": [memory], "killed": [{"system": "llama.cpp", "said": "aborted"}],
    }  # fmt: skip


def test_round_trips_are_the_slope_over_networks_and_not_the_work() -> None:
    rows = [_row("a", 2, rtt_ms, 30 + 7 * rtt_ms) for rtt_ms in (0, 5, 20)]
    rows += [_row("a", 2, 20, 1.0, streams=8), _row("b", 2, 20, 40.0)]
    assert round_trips(_result(*rows), "a", 2) == pytest.approx(7)
    assert round_trips(_result(*rows), "b", 2) is None
    assert round_trips(_result(*rows), "a", 4) is None


def test_the_table_tells_rows_round_trips_memory_and_deaths() -> None:
    text = table(_result(_row("a", 2, 5, 15.0), _row("a", 2, 20, 45.0)))
    assert text.count("| namespaces |") == 2
    assert "round trips a token, 2 machines, a: 2.0" in text
    assert "llama.cpp's server 3; of that since it got its layers 1; our node 5" in text
    assert "killed: system llama.cpp, said aborted" in text


def test_a_dead_programs_words_name_no_folders() -> None:
    said = "ended with status -6: /somewhere/ggml-rpc/ggml-rpc.cpp:566: Remote RPC server crashed"
    assert without_folders(said) == "ended with status -6: ggml-rpc.cpp:566: Remote RPC server crashed"


def test_sources_with_another_hash_are_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[tuple[str, ...]] = []

    def run(*command: str) -> None:
        commands.append(command)
        if "download" in command:
            (tmp_path / "source").mkdir()
            with tarfile.open(tmp_path / "source" / "llama.tar.gz", "w:gz"):
                pass

    monkeypatch.setattr(environments, "_run", run)
    with pytest.raises(NotAvailable, match=r"llama\.tar\.gz has the hash [0-9a-f]{64}, expected 832db"):
        environments._build_llama_cpp(("pip",), tmp_path)
    assert len(commands) == 1


def test_programs_of_its_environment_need_none_of_our_dependencies() -> None:
    there = {"numpy", "gguf", "safetensors", "llama_cpp"}
    folder = Path(worker.__file__).parent
    for name in ("decode_llama", "gguf_model", "rpc_server", "program", "small_model", "environments", "members"):
        lines = (folder / f"{name}.py").read_text(encoding="utf-8").splitlines()
        imports = [line.split()[1] for line in lines if line.startswith(("import ", "from "))]
        outside = {each.split(".")[0] for each in imports} - {"shoal"} - set(sys.stdlib_module_names)
        assert outside <= there


@pytest.mark.socket
@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="needs Linux's /proc/net/tcp")
def test_a_server_is_known_to_listen_without_being_called() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert rpc_servers._listens(os.getpid(), port)
    assert not rpc_servers._listens(os.getpid(), port)
    assert not rpc_servers._listens(2**22 + 1, port)
