"""From a hub to tokens, as a user does it: pull a part, serve it, pull the trunk, ask; the oracle's tokens come."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shoal.experts.manifest import MANIFEST_FILE, write_manifest
from shoal.experts.manifest_maker import make_manifest
from shoal.simulations.local_hub import REPOSITORY, LocalHub, local_hub
from tests.checkpoints import SHAPES, write_checkpoint
from tests.swarm.test_processes import PROMPT_IDS, environment, oracle_tokens, running_node, shoal  # noqa: F401

pytestmark = pytest.mark.socket


@contextmanager
def hub_in_a_thread(folder: Path, token: str) -> Iterator[LocalHub]:
    """A hub while the test's own thread waits for processes."""
    ready, hubs = threading.Event(), list[LocalHub]()
    loops, ends = list[asyncio.AbstractEventLoop](), list[asyncio.Event]()

    async def serve() -> None:
        async with local_hub(folder, token) as hub:
            hubs.append(hub)
            loops.append(asyncio.get_running_loop())
            ends.append(asyncio.Event())
            ready.set()
            await ends[0].wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(60)
        yield hubs[0]
    finally:
        loops[0].call_soon_threadsafe(ends[0].set)
        thread.join()


def test_a_model_pulled_from_a_hub_is_served_from_the_store_with_the_oracles_tokens(
    environment: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    model = tmp_path / "model"
    write_checkpoint(model, SHAPES["ragged_fp8_mtp_sharded"], seed=31)
    manifest = make_manifest(model)
    write_manifest(manifest, tmp_path / MANIFEST_FILE)
    root = manifest.root.hex()
    own = {name: value for name, value in environment.items() if not name.lower().endswith("_proxy")}
    with hub_in_a_thread(model, "hf_secret") as hub:
        own |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf")}
        words = ("models", "pull", f"tiny@{root[:8]}", "--from", f"hf:{REPOSITORY}", "--manifest")
        refused = shoal(own, *words, str(tmp_path / MANIFEST_FILE))
        assert (refused.returncode, "HTTP 401" in refused.stderr) == (2, True), refused.stderr
        own["HF_TOKEN"] = "hf_secret"
        pulled = shoal(own, *words, str(tmp_path / MANIFEST_FILE), "--experts", "none", "--json")
        assert pulled.returncode == 0, pulled.stderr
        assert "hf_secret" not in pulled.stdout + pulled.stderr
        assert json.loads(pulled.stdout)["num_fetched"] == len(manifest.trunk)
        with running_node(own, "--model", f"tiny@{root[:8]}", "--experts", "all") as (_, invite):
            assert hub.tokens_at_content_network == 0
            ids = ",".join(map(str, PROMPT_IDS))
            asked = ("run", "--model", "tiny", "--join", invite, "--prompt-ids", ids, "--max-tokens", "8", "--json")
            done = shoal(own, *asked)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["token_ids"] == oracle_tokens(model, tmp_path / "scratch", 8)
