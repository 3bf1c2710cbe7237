"""Whose turn it is: first come, first served, a chunk of prompts beside decoding, never more memory than the budget.

Run: pytest tests/client/engine/test_scheduler.py
"""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.client.engine.engine_settings import (
    CHUNKS_PER_PASS,
    MAX_DRAFT_DEPTH,
    MAX_RUNNING,
    PREFILL_CHUNK,
    EngineSettings,
)
from shoal.client.engine.generation import FinishReason, Token
from shoal.client.engine.sampler import Sampled, Sampler, Sampling
from shoal.client.engine.scheduler import Scheduler, Share
from shoal.client.engine.sequence import MAX_UNREAD, Answering, Ending
from shoal.client.text.answer_text import AnswerText
from shoal.client.trunk.kv_cache import LatentCache
from shoal.protocol.errors import Busy, InvalidRequest

CONTEXT = 2000
ROW_BYTES = 4
"""One layer, one fp32 value a token."""


def answering(num_prompt: int, max_tokens: int) -> Answering:
    sampler = Sampler(Sampling(), (), torch.Generator())
    return Answering([7] * num_prompt, sampler, AnswerText(None, ()), Ending(max_tokens, frozenset()), 0.0)


@dataclass
class Engine:
    """Runs passes without a trunk: every chosen token is 7."""

    settings: EngineSettings
    passes: list[list[Share]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.settings, lambda room: LatentCache(range(1), 1, torch.float32, CONTEXT, room))

    def step(self) -> dict[Answering, Token]:
        shares = self.scheduler.next_pass(0.0)
        self.passes.append(shares)
        last = [share.is_last for share in shares]
        for share in shares:
            cache = share.sequence.cache
            assert cache is not None
            assert share.start == cache.num_tokens
            cache.write(next(iter(cache._rows)), torch.zeros(share.count, 1))
            cache.commit(share.count)
        assert self.scheduler.kv_bytes <= self.settings.kv_cache_bytes
        return dict(self.chosen(share) for share, is_last in zip(shares, last, strict=True) if is_last)

    def chosen(self, share: Share) -> tuple[Answering, Token]:
        assert isinstance(share.sequence, Answering)
        token = share.sequence.take(Sampled(7, 0.0))
        if token.finish_reason is not None:
            self.scheduler.remove(share.sequence)
        return share.sequence, token


@given(
    st.lists(st.tuples(st.integers(1, 900), st.integers(1, 30)), min_size=1, max_size=12),
    st.integers(1, 5),
    st.integers(1000, 4000),
)
def test_every_answer_is_finished_within_the_budget_whatever_the_others_are(
    answers: list[tuple[int, int]], max_running: int, budget_rows: int
) -> None:
    engine = Engine(EngineSettings(max_running, 100, budget_rows * ROW_BYTES))
    engine_context = min(CONTEXT, budget_rows)
    engine.scheduler._new_cache = lambda room: LatentCache(range(1), 1, torch.float32, engine_context, room)
    sequences = [answering(num_prompt, max_tokens) for num_prompt, max_tokens in answers]
    for sequence in sequences:
        engine.scheduler.submit(sequence, 1.0)
    counts = dict.fromkeys(sequences, 0)
    while engine.scheduler.sequences:
        for sequence, token in engine.step().items():
            assert token.index == counts[sequence]
            counts[sequence] += 1
        shares = engine.passes[-1]
        assert shares, "nobody waits for a reader, so somebody can go on"
        assert len({share.sequence for share in shares}) <= max_running
        assert max(share.count for share in shares) <= PREFILL_CHUNK
        num_prompt = sum(share.count for share in shares if share.count > 1)
        assert num_prompt <= PREFILL_CHUNK * (1 if shares[0].count == 1 else CHUNKS_PER_PASS)
    assert list(counts.values()) == [max_tokens for _, max_tokens in answers]
    assert engine.scheduler.kv_bytes == 0


def test_places_are_given_in_the_order_of_coming() -> None:
    engine = Engine(EngineSettings(max_running=2))
    sequences = [answering(1, 3) for _ in range(5)]
    for sequence in sequences:
        engine.scheduler.submit(sequence, 1.0)
    done: list[Answering] = []
    while engine.scheduler.sequences:
        done += [sequence for sequence, token in engine.step().items() if token.finish_reason is FinishReason.LENGTH]
    assert done == sequences
    assert [len(shares) for shares in engine.passes] == [2] * 6 + [1] * 3


def test_a_decode_step_waits_for_no_more_than_a_chunk_and_prompts_take_turns() -> None:
    engine = Engine(EngineSettings())
    decoding, first, second = answering(1, 20), answering(700, 1), answering(700, 1)
    engine.scheduler.submit(decoding, 1.0)
    engine.step()
    for sequence in (first, second):
        engine.scheduler.submit(sequence, 1.0)
    for _ in range(6):
        engine.step()
    chunks = [[(share.sequence, share.count) for share in shares] for shares in engine.passes[1:]]
    assert [chunk[0] for chunk in chunks] == [(decoding, 1)] * 6
    assert [chunk[1] for chunk in chunks] == [
        (first, PREFILL_CHUNK),
        (second, PREFILL_CHUNK),
        (first, PREFILL_CHUNK),
        (second, PREFILL_CHUNK),
        (first, 700 - 2 * PREFILL_CHUNK),
        (second, 700 - 2 * PREFILL_CHUNK),
    ]


def test_where_nobody_decodes_a_pass_takes_many_chunks_and_prompts_take_turns() -> None:
    engine = Engine(EngineSettings())
    first, second = answering(2600, 1), answering(900, 1)
    engine.scheduler._new_cache = lambda room: LatentCache(range(1), 1, torch.float32, 4000, room)
    for sequence in (first, second):
        engine.scheduler.submit(sequence, 1.0)
    while engine.scheduler.sequences:
        engine.step()
    whole = PREFILL_CHUNK
    assert [[(share.sequence, share.start, share.count) for share in shares] for shares in engine.passes] == [
        [(each, whole * place, whole) for place in range(3) for each in (first, second)]
        + [(first, 3 * whole, whole), (second, 3 * whole, 900 - 3 * whole)],  # the end of one of them ends the pass
        [(first, whole * place, whole) for place in range(4, 10)] + [(first, 10 * whole, 2600 - 10 * whole)],
    ]


def test_short_prompts_share_a_pass_with_those_who_decode() -> None:
    engine = Engine(EngineSettings())
    decoding, short = answering(1, 20), [answering(100, 1) for _ in range(3)]
    engine.scheduler.submit(decoding, 1.0)
    engine.step()
    for sequence in short:
        engine.scheduler.submit(sequence, 1.0)
    engine.step()
    engine.step()
    assert [[share.sequence for share in shares] for shares in engine.passes[1:]] == [
        [decoding, *short[:2]],
        [decoding, short[2]],
    ]


def test_one_after_another_means_a_chunk_a_pass() -> None:
    engine = Engine(EngineSettings(prefill_ahead=1))
    engine.scheduler.submit(answering(600, 1), 1.0)
    for _ in range(3):
        engine.step()
    assert [[share.count for share in shares] for shares in engine.passes] == [[256], [256], [88]]


def test_one_more_than_may_run_and_wait_is_busy_with_the_time_to_come_back() -> None:
    engine = Engine(EngineSettings(max_running=1, max_waiting=2))
    sequences = [answering(1, 1) for _ in range(3)]
    for sequence in sequences:
        engine.scheduler.submit(sequence, 1.0)
    with pytest.raises(Busy) as caught:
        engine.scheduler.submit(answering(1, 1), 2.5)
    assert caught.value.retry_after_s == 2.5
    engine.scheduler.remove(sequences[1])
    engine.scheduler.submit(answering(1, 1), 1.0)


def test_a_stream_whose_reader_is_behind_is_left_out_until_it_has_read() -> None:
    engine = Engine(EngineSettings())
    slow, quick = answering(1, 50), answering(1, 50)
    for sequence in (slow, quick):
        engine.scheduler.submit(sequence, 1.0)
    for _ in range(MAX_UNREAD):
        slow.put(engine.step()[slow])
    assert [share.sequence for share in engine.scheduler.next_pass(0.0)] == [quick]


def test_the_youngest_gives_up_its_memory_and_keeps_its_place_in_the_queue() -> None:
    """Room for 1,000 tokens: two prompts of 400 fit with the room they ask for, and the older one outgrows them."""
    engine = Engine(EngineSettings(kv_cache_bytes=1000 * ROW_BYTES))
    old, young, later = answering(400, 10), answering(400, 10), answering(100, 10)
    for sequence in (old, young, later):
        engine.scheduler.submit(sequence, 1.0)
    while old in engine.scheduler.sequences:
        engine.step()
        if young.cache is None and old.cache is not None:
            assert engine.scheduler.sequences == [old, young, later]
    assert old.ids == [7] * 410
    while engine.scheduler.sequences:
        engine.step()
    assert (young.ids, later.ids) == ([7] * 410, [7] * 110)


@pytest.mark.parametrize(
    "values",
    [
        {"max_running": 0},
        {"max_running": MAX_RUNNING + 1},
        {"max_waiting": -1},
        {"kv_cache_bytes": 0},
        {"prefill_ahead": 0},
        {"prefill_ahead": CHUNKS_PER_PASS + 1},
        {"draft_depth": 0},
        {"draft_depth": MAX_DRAFT_DEPTH + 1},
    ],
)
def test_settings_out_of_range_are_refused_by_name(values: dict[str, int]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(values))):
        EngineSettings(**values)
