"""MTP drafts: the same in company as alone, bounded, and refused by name where they cannot be; every choice of drafter.

Run: pytest tests/client/speculation/test_mtp_drafts.py
"""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shoal.client.engine.engine_settings import EngineSettings
from shoal.client.engine.generate import Engine
from shoal.client.speculation.choice import Speculation, choose_drafter, drafts_by_mtp
from shoal.client.speculation.drafter import Drafts, Wish
from shoal.client.speculation.mtp_drafter import MAX_TAIL, SLACK, MtpDrafter
from shoal.client.trunk.checkpoint import load_mtp
from shoal.experts.store import ModelStore
from shoal.protocol.errors import InvalidRequest
from tests.checkpoints import SHAPES, write_checkpoint
from tests.client.speculation.drafted_model import GREEDY, PROMPT, Model, stream


def test_mtp_drafts_the_same_for_streams_together_as_alone_and_wrong_ones_leave_no_trace(model: Model) -> None:
    mtp = load_mtp(model.store, model.trunk, None)
    assert mtp is not None
    ids = torch.arange(40) * 7 % 300

    async def drafts_of(drafter: MtpDrafter, keys: list["Key"], ends: list[int]) -> list[Drafts]:
        return await drafter.draft([Wish(k, ids[: end + 1].tolist(), 3) for k, end in zip(keys, ends, strict=True)])

    async def main() -> None:
        states = await model.trunk.forward(ids, model.trunk.new_cache(), model.experts)
        a, b, c = Key(), Key(), Key()
        one, two = MtpDrafter(mtp, model.experts), MtpDrafter(mtp, model.experts)
        for end in (10, 11, 14, 20):  # drafts in between, all of them thrown away
            start = {10: 0, 11: 10, 14: 11, 20: 14}[end]
            one.saw(a, start, states[start:end])
            last = (await drafts_of(one, [a], [end]))[0]
        two.saw(b, 0, states[:20])
        two.saw(c, 0, states[:5])
        together = await drafts_of(two, [b, c], [20, 5])
        assert together[0] == last
        assert [len(drafts) for drafts in together] == [3, 3]
        assert await drafts_of(two, [Key()], [20]) == [()]  # of whom it knows nothing
        two.saw(b, 3, states[3:8])  # run anew from there: only what it has seen since counts
        assert await drafts_of(two, [b], [20]) == [()]
        assert len((await drafts_of(two, [b], [8]))[0]) == 3

    asyncio.run(main())


def test_a_chain_goes_on_from_guesses_as_if_it_had_been_asked_for_all_at_once_whoever_made_them(model: Model) -> None:
    mtp = load_mtp(model.store, model.trunk, None)
    assert mtp is not None
    ids = (torch.arange(40) * 7 % 300).tolist()

    async def main() -> None:
        states = await model.trunk.forward(torch.tensor(ids), model.trunk.new_cache(), model.experts)
        one, other, key = MtpDrafter(mtp, model.experts), MtpDrafter(mtp, model.experts), Key()

        async def drafts_of(drafter: MtpDrafter, end: int, width: int, guessed: Drafts = ()) -> Drafts:
            return (await drafter.draft([Wish(key, ids[: end + 1], width, guessed)]))[0]

        for drafter in (one, other):
            drafter.saw(key, 0, states[:20])
        whole = await drafts_of(one, 20, 7)
        parts = await drafts_of(other, 20, 3)
        for width in (1, 3):
            parts += await drafts_of(other, 20, width, parts)
        assert parts == whole
        somebodys = tuple((token_id + 1) % 300 for token_id in whole[:3])
        after = await drafts_of(other, 20, 2, somebodys)
        assert await drafts_of(one, 20, 2, somebodys) == after
        assert await drafts_of(other, 20, 7) == whole  # other guesses have left no trace
        for drafter in (one, other):
            drafter.saw(key, 20, states[20:23])
        further = await drafts_of(other, 23, 4, (5, 6))
        assert await drafts_of(one, 23, 2, (5, 6)) == further[:2]

    asyncio.run(main())


class Key:
    """Some stream."""


def test_states_that_wait_are_bounded(model: Model) -> None:
    mtp = load_mtp(model.store, model.trunk, None)
    assert mtp is not None
    drafter, key = MtpDrafter(mtp, model.experts), Key()
    for start in range(0, 390, 30):
        drafter.saw(key, start, torch.zeros(30, model.trunk.config.hidden_size, dtype=model.trunk.dtype))
        assert sum(tail.num_waiting for tail in drafter._tails.values()) <= MAX_TAIL + SLACK
    assert len(asyncio.run(drafter.draft([Wish(key, [1] * 391, 2)]))[0]) == 2
    assert [tail.num_known for tail in drafter._tails.values()] == [MAX_TAIL]


@pytest.mark.parametrize("choice", [Speculation.AUTO, Speculation.MTP, Speculation.NGRAM])
def test_every_choice_gives_the_same_answer(model: Model, choice: Speculation) -> None:
    has_mtp = drafts_by_mtp(choice, model.store, 1, 2**40)
    mtp = load_mtp(model.store, model.trunk, None) if has_mtp else None
    drafter = choose_drafter(choice, MtpDrafter(mtp, model.experts) if mtp else None)
    limits = EngineSettings()
    engine = Engine(model.trunk, model.experts, None, lambda: 7, settings=limits, drafter=drafter)
    tokens = asyncio.run(stream(engine, PROMPT, replace(GREEDY, max_tokens=40)))
    plain = asyncio.run(stream(model.engine(), PROMPT, replace(GREEDY, max_tokens=40)))
    assert [token.id for token in tokens] == [token.id for token in plain]


def test_mtp_is_refused_by_name_where_it_cannot_be(model: Model, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="more than a quarter"):
        drafts_by_mtp(Speculation.MTP, model.store, expert_bytes=2**30, free_bytes=2**30)
    assert not drafts_by_mtp(Speculation.AUTO, model.store, expert_bytes=2**30, free_bytes=2**30)
    write_checkpoint(tmp_path / "model", SHAPES["plain"], seed=1)
    without = ModelStore.open(tmp_path / "model", tmp_path / "cache")
    with pytest.raises(InvalidRequest, match="no MTP layer"):
        drafts_by_mtp(Speculation.MTP, without, 1, 2**40)
    assert not drafts_by_mtp(Speculation.AUTO, without, 1, 2**40)
    with pytest.raises(InvalidRequest, match="no MTP layer"):
        choose_drafter(Speculation.MTP)


def test_mtp_whose_experts_are_not_on_this_machine_is_left_alone_or_refused(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelStore, "has_experts", lambda self, layer: False)
    assert not drafts_by_mtp(Speculation.AUTO, model.store, 1, 2**40)
    with pytest.raises(InvalidRequest, match=r"not here; .* models pull model --experts 3:0-7"):
        drafts_by_mtp(Speculation.MTP, model.store, 1, 2**40)
