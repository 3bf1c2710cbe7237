"""Weights between real processes: a node that begins with nothing fills from a peer while a story streams, and then the
peer is killed. Run: pytest tests/swarm/test_seeding_processes.py
"""

import json
import shutil
import time
from pathlib import Path

import pytest

from shoal.client import Sampling, SwarmSettings
from shoal.client.blocking import BlockingSwarm
from shoal.experts.manifest import MANIFEST_FILE, Manifest, write_manifest
from shoal.experts.manifest_maker import make_manifest
from tests.checkpoints import SHAPES, write_checkpoint
from tests.swarm.test_processes import PROMPT_IDS, environment, oracle_tokens, running_node, shoal  # noqa: F401

pytestmark = pytest.mark.socket

LONG_S = 240.0
"""A condition that has not come true by then never will."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", SHAPES["ragged_fp8_mtp_sharded"], seed=31)
    write_manifest(make_manifest(tmp_path / "model"), tmp_path / "model" / MANIFEST_FILE)
    return tmp_path / "model"


def known_by_name(model: Path, environment: dict[str, str], tmp_path: Path) -> dict[str, str]:  # noqa: F811
    """An environment with a store of its own that knows the model, and has not a byte of its weights nor where to get
    them: its manifest and config came on a stick that is gone."""
    stick = tmp_path / "stick"
    stick.mkdir()
    for name in ("config.json", MANIFEST_FILE):
        shutil.copy(model / name, stick / name)
    own = environment | {"SHOAL_STORE": str(tmp_path / "store")}
    done = shoal(own, "models", "pull", "tiny", "--from", str(stick), "--experts", "none", "--no-trunk")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(stick)
    return own


def weights(environment: dict[str, str], name: str) -> dict[str, object]:  # noqa: F811
    done = shoal(environment, "status", "--name", name, "--json")
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    found: dict[str, object] = status["weights"] | {"num_experts": status["num_experts"]}
    return found


def wait_until_filled(environment: dict[str, str], name: str, manifest: Manifest) -> dict[str, object]:  # noqa: F811
    end = time.monotonic() + LONG_S
    seen = weights(environment, name)
    while seen["num_experts"] != manifest.num_experts:
        assert time.monotonic() < end, seen
        seen = weights(environment, name)
    return seen


def wait_for_two_holders(swarm: BlockingSwarm) -> None:
    """The client looks into the directory every 15 s."""
    end = time.monotonic() + LONG_S
    while min(count for layer in swarm.coverage().values() for count in layer.values()) < 2:
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_node_fills_from_a_peer_while_an_answer_streams_and_serves_it_alone_when_the_peer_is_killed(
    model: Path,
    environment: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    manifest, own = make_manifest(model), known_by_name(model, environment, tmp_path)
    sampling = Sampling(max_tokens=24, ignore_eos=True)
    with running_node(environment, "--model", str(model), "--experts", "all") as (first, token):
        settings = SwarmSettings(model=model, join=(token,), cache_dir=tmp_path / "cache", max_wait_s=LONG_S)
        with BlockingSwarm(settings) as swarm:
            streaming = iter(swarm.stream(PROMPT_IDS, sampling))
            ids = [next(streaming).id for _ in range(4)]
            joining = ("--model", "tiny", "--experts", "all", "--join", token, "--name", "empty")
            with running_node(own, *joining):
                filled = wait_until_filled(own, "empty", manifest)
                given = weights(environment, "node")
                ids += [next(streaming).id for _ in range(4)]
                wait_for_two_holders(swarm)
                first.kill()
                first.wait()
                ids += [token.id for token in streaming]
    assert ids == oracle_tokens(model, tmp_path / "scratch", 24)
    assert filled["num_fetched"] == manifest.num_experts
    assert int(str(given["pieces_given"])) >= manifest.num_experts
    assert int(str(given["bytes_given"])) >= int(str(filled["peer_bytes"])) > 0
