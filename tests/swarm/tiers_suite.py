"""Two tiers, with real processes: who alone holds half of the experts in memory dies in mid-answer, and the answer goes
on with those that another node has on its disk."""

import asyncio
import json
from pathlib import Path

import pytest

from shoal.client import Sampling, Swarm, SwarmSettings
from shoal.protocol.events import DispatchSent, Event, Observer
from tests.checkpoints import SHAPES, write_checkpoint
from tests.swarm.test_processes import (
    PROMPT_IDS,
    environment,  # noqa: F401  (a fixture)
    oracle_tokens,
    running_node,
    shoal,
)

pytestmark = pytest.mark.socket

KILL_AT, NUM_TOKENS = 9, 16
"""The request at whose sending the holder dies: two a layer and token, so in one of the first tokens."""

ON_DISK = frozenset(range(4, 8))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", SHAPES["plain"], seed=31)
    return tmp_path / "model"


async def answer(settings: SwarmSettings, observe: Observer) -> list[int]:
    async with Swarm.join(settings, observe) as swarm:
        made = await swarm.generate(PROMPT_IDS, Sampling(max_tokens=NUM_TOKENS, ignore_eos=True))
        return list(made.token_ids)


def test_an_answer_whose_only_holder_in_memory_is_killed_goes_on_from_disk_with_the_oracles_tokens(
    model: Path,
    environment: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    own, asked = ("--model", str(model), "--threads", "1"), list[DispatchSent]()
    tiers = ("--experts", "0-3", "--ram", "8MB", "--cold", "1MB")
    with (
        running_node(environment, *own, "--name", "tiers", *tiers) as (_, token),
        running_node(environment, *own, "--name", "memory", "--experts", "4-7", "--join", token) as (memory, _),
    ):
        status = json.loads(shoal(environment, "status", "--name", "tiers", "--json").stdout)
        peers = json.loads(shoal(environment, "peers", "--name", "tiers", "--json").stdout)["peers"]

        def observe(event: Event) -> None:
            if isinstance(event, DispatchSent):
                asked.append(event)
                if len(asked) == KILL_AT:
                    memory.kill()

        settings = SwarmSettings(model=model, join=(token,), cache_dir=tmp_path / "cache")
        tokens = asyncio.run(answer(settings, observe))
    assert tokens == oracle_tokens(model, tmp_path / "copy", NUM_TOKENS)
    assert (status["num_experts"], status["num_cold"]) == (8, 8)
    assert status["read_ms"] > 0
    assert {peer["peer"]: peer["num_cold"] for peer in peers}[status["peer"]] == 8
    of_tiers = [event for event in asked if event.peer == status["peer"]]
    assert any(ON_DISK.issuperset(event.experts) for event in of_tiers if event in asked[KILL_AT:])
    assert all(ON_DISK.isdisjoint(event.experts) or ON_DISK.issuperset(event.experts) for event in of_tiers)
