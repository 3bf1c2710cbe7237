"""The last resort, with real processes: all holders but the anchor die in mid-answer, and the answer goes on."""

import asyncio
from pathlib import Path

import pytest

from shoal.client import Sampling, Swarm, SwarmSettings
from shoal.protocol.events import DispatchSent, Event, Observer
from tests.checkpoints import SHAPES, write_checkpoint
from tests.swarm.test_processes import PROMPT_IDS, environment, oracle_tokens, running_node  # noqa: F401  (a fixture)

pytestmark = pytest.mark.socket

KILL_AT, NUM_TOKENS = 9, 16
"""The request at whose sending both holders die: two a layer and token, so in one of the first tokens."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", SHAPES["plain"], seed=31)
    return tmp_path / "model"


async def answer(settings: SwarmSettings, observe: Observer) -> tuple[list[int], set[str]]:
    """The tokens, and who says of himself that he is an anchor."""
    async with Swarm.join(settings, observe) as swarm:
        made = await swarm.generate(PROMPT_IDS, Sampling(max_tokens=NUM_TOKENS, ignore_eos=True))
        return list(made.token_ids), {peer.peer for peer in swarm.peers() if peer.is_anchor}


def test_an_answer_whose_holders_are_all_killed_goes_on_at_the_anchor_with_the_oracles_tokens(
    model: Path,
    environment: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    own, asked = ("--model", str(model), "--threads", "1"), list[str]()
    with (
        running_node(environment, *own, "--name", "anchor", "--anchor", "--share", "1MB") as (_, token),
        running_node(environment, *own, "--name", "one", "--experts", "0-3", "--join", token) as (one, _),
        running_node(environment, *own, "--name", "two", "--experts", "4-7", "--join", token) as (two, _),
    ):

        def observe(event: Event) -> None:
            if isinstance(event, DispatchSent):
                asked.append(event.peer)
                if len(asked) == KILL_AT:
                    one.kill()
                    two.kill()

        settings = SwarmSettings(model=model, join=(token,), cache_dir=tmp_path / "cache")
        tokens, anchors = asyncio.run(answer(settings, observe))
    assert tokens == oracle_tokens(model, tmp_path / "copy", NUM_TOKENS)
    assert len(anchors) == 1
    assert anchors <= set(asked[KILL_AT:])
