"""`shoal bench` with real processes: many answers of several clients, and one token part by part.

Run: pytest tests/swarm/test_bench_processes.py
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.swarm.test_processes import environment, shoal  # noqa: F401  (the first is a fixture)

pytestmark = pytest.mark.socket


def test_two_clients_share_nodes_and_the_counters_of_all_are_there(
    environment: dict[str, str],  # noqa: F811
) -> None:
    measured = ("--streams", "1,3", "--groups", "2,auto", "--clients", "2", "--tokens", "3", "--rounds", "1")
    done = shoal(
        environment, "bench", "throughput", "--nodes", "2", "--replicas", "1", *measured, "--json", timeout_s=300
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    rows = result["streams"]
    assert [(row["streams"], row["groups"]) for row in rows] == [(1, 2), (1, None), (3, 2), (3, None)]
    assert result["network"] == "loopback"
    for row in rows:
        assert row["tokens_per_s"] > 0
        assert min(row["rows_per_pass"], row["waves_per_pass"]) >= 1
        assert row["dispatches_per_token"] > 0, "every client's frames are counted"
        assert row["requests_per_call"] > 0, "nodes tell their counters"
        assert row["budget_ms"]["total"] > 0


def test_a_token_through_real_nodes_has_every_part_and_a_picture(
    environment: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    picture = tmp_path / "flame.svg"
    done = shoal(environment, "bench", "token", "--tokens", "6", "--flame", str(picture), "--json", timeout_s=300)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    parts = result["parts_ms"]
    assert result["num_tokens"] == 5
    assert sum(parts.values()) == pytest.approx(result["token_ms"]["mean"], rel=0.01)
    for name in ("embedding", "dense", "attention", "router", "packing", "wire", "head", "sampling"):
        assert parts[name] > 0, name
    assert result["samples"] > 0
    assert picture.read_text(encoding="utf-8").startswith("<svg")
    assert "flame.py" in picture.with_suffix(".folded").read_text(encoding="utf-8"), "who began is seen"
