"""A swarm from a token alone, between real processes: a node with an empty disk fills from peers, clients with an empty
disk answer, and whoever had the checkpoint is killed. Run: make test-token
"""

import json
import time
from pathlib import Path

import pytest

from shoal.experts.manifest import MANIFEST_FILE, Manifest, write_manifest
from shoal.experts.manifest_maker import make_manifest
from tests.checkpoints import SHAPES, write_checkpoint
from tests.swarm.test_processes import PROMPT_IDS, environment, oracle_tokens, running_node, shoal  # noqa: F401
from tests.swarm.test_seeding_processes import LONG_S, wait_until_filled

pytestmark = [pytest.mark.socket, pytest.mark.timeout(1800)]

NUM_TOKENS = 16


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", SHAPES["ragged_fp8_mtp_sharded"], seed=31)
    write_manifest(make_manifest(tmp_path / "model"), tmp_path / "model" / MANIFEST_FILE)
    return tmp_path / "model"


def empty_disk(environment: dict[str, str], tmp_path: Path, name: str) -> dict[str, str]:  # noqa: F811
    """The same machine with nothing of any model on its disk."""
    return environment | {"SHOAL_STORE": str(tmp_path / name / "store"), "XDG_CACHE_HOME": str(tmp_path / name)}


def answer(environment: dict[str, str], token: str) -> list[int]:  # noqa: F811
    """What a user gets, who tries again as long as the swarm does not answer (1) or lacks something (4, 7)."""
    ids, end = ",".join(map(str, PROMPT_IDS)), time.monotonic() + LONG_S
    words = ("run", "--prompt-ids", ids, "--max-tokens", str(NUM_TOKENS), "--join", token, "--json")
    tries = [done := shoal(environment, *words)]
    while done.returncode in (1, 4, 7) and time.monotonic() < end:
        tries.append(done := shoal(environment, *words))
    assert done.returncode == 0, [(each.returncode, each.stderr) for each in tries]
    found: list[int] = json.loads(done.stdout)["token_ids"]
    assert found
    return found


def wait_until_trunk_is_kept(environment: dict[str, str], name: str) -> None:  # noqa: F811
    log, end = Path(environment["XDG_STATE_HOME"]) / "shoal" / f"{name}.log", time.monotonic() + LONG_S
    while '"trunk_kept"' not in log.read_text(encoding="utf-8"):
        assert time.monotonic() < end, log.read_text(encoding="utf-8")
        time.sleep(0.1)


def wait_until_all_is_kept(environment: dict[str, str], name: str, manifest: Manifest) -> None:  # noqa: F811
    wait_until_filled(environment, name, manifest)
    wait_until_trunk_is_kept(environment, name)


def test_node_and_clients_with_nothing_but_a_token_answer_as_the_oracle_and_go_on_when_the_founder_is_killed(
    model: Path,
    environment: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    oracle = oracle_tokens(model, tmp_path / "scratch", NUM_TOKENS)
    with running_node(environment, "--model", str(model), "--experts", "all") as (founder, token):
        own = empty_disk(environment, tmp_path, "b")
        joining = ("--join", token, "--share", "1GB", "--seed-trunk", "--name", "empty")
        with running_node(own, *joining) as (_, token_of_the_second):
            wait_until_all_is_kept(own, "empty", make_manifest(model))
            early = answer(empty_disk(environment, tmp_path, "c"), token)
            founder.kill()
            founder.wait()
            late = answer(empty_disk(environment, tmp_path, "d"), token_of_the_second)
    assert early == oracle[: len(early)]
    assert late == oracle[: len(late)]


def test_a_copy_of_the_swarms_model_is_pulled_by_its_token_and_is_whole_and_everything_works_on_it(
    model: Path,
    environment: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    manifest, own = make_manifest(model), empty_disk(environment, tmp_path, "b")
    root = manifest.root.hex()
    with running_node(environment, "--model", str(model), "--experts", "all") as (_, token):
        dry = shoal(own, "models", "pull", "--join", token, "--dry-run", "--json")
        assert dry.returncode == 0, dry.stderr
        told = json.loads(dry.stdout)
        assert (told["num_missing"], told["num_nowhere"]) == (told["num_pieces"], 0)
        assert told["forecast_s"] > 0
        assert json.loads(shoal(own, "models", "ls", "--json").stdout)["models"] == []
        wrong = shoal(own, "models", "pull", "tiny@deadbeef", "--join", token)
        assert (wrong.returncode, root in wrong.stderr) == (6, True), wrong.stderr
        part = shoal(own, "models", "pull", "tiny", "--join", token, "--experts", "1:0-2", "--no-trunk", "--json")
        assert (part.returncode, json.loads(part.stdout)["num_fetched"]) == (0, 3), part.stderr
        rest = shoal(own, "models", "pull", "tiny", "--join", token, "--json")
        assert rest.returncode == 0, rest.stderr
        shown = json.loads(rest.stdout)
        assert shown["num_fetched"] == told["num_pieces"] - 3
    [listed] = json.loads(shoal(own, "models", "ls", "--json").stdout)["models"]
    assert (listed["root"], listed["num_experts_here"]) == (root, listed["num_experts"])
    assert listed["num_trunk_tensors_here"] == listed["num_trunk_tensors"]
    assert listed["size_bytes"] == told["missing_bytes"], "the forecast was exact"
    verified = json.loads(shoal(own, "models", "verify", "tiny", "--json").stdout)
    assert (verified["num_verified"], verified["damaged"]) == (told["num_pieces"], [])
    removed = shoal(own, "models", "rm", "tiny", "--json")
    assert json.loads(removed.stdout)["freed_bytes"] >= listed["size_bytes"]
