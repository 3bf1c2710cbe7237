"""Passes of drafts that follow one another: the same answers as without, whatever goes wrong while they are under way.

Run: pytest tests/client/speculation/test_pursuit.py
"""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoal.client.engine.generate import Token
from shoal.client.engine.sampler import Sampling
from shoal.client.speculation.choice import Speculation, choose_drafter
from shoal.client.speculation.drafter import Drafts, Wish
from shoal.client.speculation.mtp_drafter import MtpDrafter
from shoal.client.trunk.checkpoint import load_mtp
from shoal.client.trunk.moe import RoutedExperts
from shoal.protocol.errors import CoverageGap, Draining, NoTokenAllowed, ShoalError
from shoal.protocol.events import Event, PassTaken
from shoal.protocol.ids import ExpertId, LayerId
from tests.client.speculation.drafted_model import GREEDY, PROMPT, Model, stream
from tests.client.speculation.test_speculation import Evens, Oracle, assert_same, is_left_clean, samplings

TURNS = 40
"""Turns of the event loop that an exchange takes: more than anything else does in a pass."""


@dataclass
class Far(RoutedExperts):
    """Experts that are far away: every call takes its turns, and the trunk has nothing to do meanwhile."""

    experts: RoutedExperts
    num_rows: list[int] = field(default_factory=list)
    num_under_way: int = 0
    most_under_way: int = 0
    num_cancelled: int = 0
    are_three: asyncio.Event = field(default_factory=asyncio.Event)
    """Whether three calls were under way at a time."""

    async def __call__(self, layer: LayerId, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        self.num_rows.append(len(x))
        self.num_under_way += 1
        self.most_under_way = max(self.most_under_way, self.num_under_way)
        if self.num_under_way == 3:
            self.are_three.set()
        try:
            for _ in range(TURNS):
                await asyncio.sleep(0)
            return await self.experts(layer, x, topk_idx, topk_weights)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_under_way -= 1


LONG = replace(GREEDY, max_tokens=40)


def answer_of(model: Model, sampling: Sampling = LONG, prompt: Sequence[int] = PROMPT) -> list[int]:
    return [*prompt, *(t.id for t in asyncio.run(stream(model.engine(), prompt, sampling)))]


def passes_of(events: list[Event]) -> list[PassTaken]:
    return [event for event in events if isinstance(event, PassTaken)]


def test_right_guesses_keep_as_many_passes_under_way_as_asked_for(model: Model) -> None:
    answer, far, events = answer_of(model), Far(model.experts), list[Event]()
    engine = model.engine(Oracle([answer], 1000), 2, far, events=events, depth=3)
    tokens = asyncio.run(stream(engine, PROMPT, LONG))
    assert [token.id for token in tokens] == answer[len(PROMPT) :]
    assert far.most_under_way == 3
    assert far.num_cancelled == sum(event.num_void for event in passes_of(events)) == 0
    assert [token.was_drafted for token in tokens] == [False, False] + [True] * 38
    taken = passes_of(events)
    assert len({event.pass_id for event in taken}) == len(taken) == 1 + 13
    assert sum(event.num_drafted for event in taken) == sum(event.num_accepted for event in taken) == 38
    assert sum(token.num_drafted for token in tokens) == 38
    assert is_left_clean(engine)


def test_at_the_first_wrong_guess_everything_behind_it_is_thrown_away_and_counted(model: Model) -> None:
    answer, far, events = answer_of(model), Far(model.experts), list[Event]()
    engine = model.engine(Oracle([answer], errs_every=5), 2, far, events=events, depth=3)
    tokens = asyncio.run(stream(engine, PROMPT, LONG))
    assert [token.id for token in tokens] == answer[len(PROMPT) :]
    taken = passes_of(events)
    num_void = sum(event.num_void for event in taken)
    assert num_void > 0
    assert far.num_cancelled > 0
    assert far.num_under_way == 0
    assert sum(event.num_drafted for event in taken) == sum(token.num_drafted for token in tokens)
    assert sum(event.num_accepted for event in taken) == sum(token.was_drafted for token in tokens)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    prompt=st.lists(st.integers(0, 300), min_size=1, max_size=8),
    sampling=samplings,
    max_tokens=st.integers(1, 30),
    errs_every=st.sampled_from([1, 3, 7, 1000]),
    width=st.sampled_from([1, 2, 4]),
    depth=st.sampled_from([2, 3, 8]),
)
def test_answers_are_the_same_however_many_passes_follow_and_however_wrong_they_are(
    model: Model, prompt: list[int], sampling: Sampling, max_tokens: int, errs_every: int, width: int, depth: int
) -> None:
    sampling = replace(sampling, max_tokens=max_tokens)
    expected = asyncio.run(stream(model.engine(), prompt, sampling))
    answer = [*prompt, *(token.id for token in expected)]
    engine = model.engine(Oracle([answer], errs_every), width, Far(model.experts), depth=depth)
    assert_same(asyncio.run(stream(engine, prompt, sampling)), expected)
    assert is_left_clean(engine)


@pytest.mark.parametrize("choice", [Speculation.AUTO, Speculation.MTP, Speculation.NGRAM])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_every_drafter_goes_on_from_guesses_and_the_answer_is_the_same(
    model: Model, choice: Speculation, temperature: float
) -> None:
    mtp, far = load_mtp(model.store, model.trunk, None), Far(model.experts)
    assert mtp is not None
    sampling = replace(LONG, temperature=temperature, top_k=3, seed=5)
    engine = model.engine(choose_drafter(choice, MtpDrafter(mtp, model.experts)), 2, far, depth=3)
    expected = asyncio.run(stream(model.engine(), PROMPT, sampling))
    assert_same(asyncio.run(stream(engine, PROMPT, sampling)), expected)
    assert far.most_under_way > 1 or choice is Speculation.NGRAM  # a text that never repeats itself has no drafts


def test_streams_together_share_passes_and_nothing_follows(model: Model) -> None:
    prompts = [PROMPT, (5, 17)]
    answers = [answer_of(model, LONG, prompt) for prompt in prompts]
    far = Far(model.experts)
    engine = model.engine(Oracle(answers, 3), 2, far, depth=3)

    async def together() -> list[list[Token]]:
        return await asyncio.gather(*(stream(engine, prompt, LONG) for prompt in prompts))

    found = asyncio.run(together())
    assert [[t.id for t in tokens] for tokens in found] == [answers[0][len(PROMPT) :], answers[1][2:]]


def test_a_newcomer_waits_for_no_more_than_what_is_under_way(model: Model) -> None:
    answers, events = [answer_of(model), answer_of(model, LONG, (5, 17))], list[Event]()
    engine = model.engine(Oracle(answers, 1000), 2, Far(model.experts), events=events, depth=3)

    async def main() -> tuple[list[int], list[Token]]:
        async with aclosing(engine.stream(PROMPT, LONG)) as first:
            ids = [(await anext(first)).id for _ in range(8)]
            newcomer = asyncio.create_task(stream(engine, (5, 17), LONG))
            ids += [token.id async for token in first]
        return ids, await newcomer

    ids, tokens = asyncio.run(main())
    assert ids == answers[0][len(PROMPT) :]
    assert [token.id for token in tokens] == answers[1][2:]
    first_shared = next(place for place, event in enumerate(passes_of(events)) if event.num_running == 2)
    assert passes_of(events)[first_shared + 3].num_decoding == 2


def test_a_grammar_and_its_dead_end_are_the_answers_own(model: Model) -> None:
    sampling = replace(LONG, temperature=1.0, seed=4)
    expected = asyncio.run(stream(model.engine(), PROMPT, sampling, Evens()))
    answer = [*PROMPT, *(token.id for token in expected)]
    engine = model.engine(Oracle([answer], 7), 2, Far(model.experts), depth=3)
    assert_same(asyncio.run(stream(engine, PROMPT, sampling, Evens())), expected)
    got = list[int]()

    async def main() -> None:
        async with aclosing(engine.stream(PROMPT, sampling, Evens(length=9))) as tokens:
            async for token in tokens:
                got.append(token.id)

    with pytest.raises(NoTokenAllowed):
        asyncio.run(main())
    assert got == answer[len(PROMPT) :][:9]
    assert is_left_clean(engine)


def test_leaving_while_passes_follow_cancels_them_all_and_frees_the_place(model: Model) -> None:
    far = Far(model.experts)
    engine = model.engine(Oracle([answer_of(model)], 1000), 2, far, depth=3)

    async def main() -> list[Token]:
        reading = asyncio.create_task(stream(engine, PROMPT, LONG))
        await far.are_three.wait()
        reading.cancel()
        await asyncio.wait({reading})
        assert (far.num_under_way, far.num_cancelled) == (0, 3)
        assert is_left_clean(engine)
        return await stream(engine, PROMPT, replace(LONG, max_tokens=1))

    assert len(asyncio.run(main())) == 1


def test_closing_the_engine_while_passes_follow_leaves_nothing_under_way(model: Model) -> None:
    far = Far(model.experts)
    engine = model.engine(Oracle([answer_of(model)], 1000), 2, far, depth=3)

    async def main() -> None:
        reading = asyncio.create_task(stream(engine, PROMPT, LONG))
        await far.are_three.wait()
        await engine.aclose()
        assert far.num_under_way == 0
        with pytest.raises(Draining):
            await reading

    asyncio.run(main())
    assert is_left_clean(engine)


@dataclass
class FarGap(Far):
    """An expert of a layer is missing from some call on: of the call's first row, or of its others only."""

    from_call: int = 0
    of_first_row: bool = True
    num_gaps: int = 0
    most_gaps: int = 10**6

    async def __call__(self, layer: LayerId, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        result = await super().__call__(layer, x, topk_idx, topk_weights)
        mine = set(topk_idx[0].tolist())
        others = [expert for expert in topk_idx[1:].flatten().tolist() if expert not in mine]
        missing = [int(topk_idx[0, 0])] if self.of_first_row else others
        if missing and len(self.num_rows) >= self.from_call and len(x) == 3 and self.num_gaps < self.most_gaps:
            self.num_gaps += 1
            raise CoverageGap(layer, [ExpertId(missing[0])], 1.0)
        return result


def test_a_gap_ends_the_answer_after_the_tokens_of_the_passes_before_it(model: Model) -> None:
    answer = answer_of(model)
    engine = model.engine(Oracle([answer], 1000), 2, FarGap(model.experts, from_call=12), depth=3)
    got = list[int]()

    async def main() -> None:
        async with aclosing(engine.stream(PROMPT, LONG)) as tokens:
            async for token in tokens:
                got.append(token.id)

    with pytest.raises(CoverageGap):
        asyncio.run(main())
    assert 4 < len(got) < 40
    assert got == answer[len(PROMPT) :][: len(got)]
    assert is_left_clean(engine)


def test_a_gap_that_only_guesses_met_ends_nothing(model: Model) -> None:
    answer, gap = answer_of(model), FarGap(model.experts, from_call=8, of_first_row=False, most_gaps=1)
    engine = model.engine(Oracle([answer], 1000), 2, gap, depth=3)
    tokens = asyncio.run(stream(engine, PROMPT, LONG))
    assert [token.id for token in tokens] == answer[len(PROMPT) :]
    assert gap.num_gaps == 1


@dataclass
class GapOfFollowers(Far):
    """Every pass that enters while another one is under way meets a gap."""

    following: dict[object, bool] = field(default_factory=dict)
    num_gaps: int = 0

    async def __call__(self, layer: LayerId, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        is_following = self.following.setdefault(asyncio.current_task(), self.num_under_way > 0)
        result = await super().__call__(layer, x, topk_idx, topk_weights)
        if is_following:
            self.num_gaps += 1
            raise CoverageGap(layer, [ExpertId(int(topk_idx[0, 0]))], 1.0)
        return result


def test_a_gap_in_a_pass_that_is_thrown_away_is_nobodys(model: Model) -> None:
    """Every guess at the end of a pass is wrong, so that what follows is never needed; it alone meets gaps."""
    answer, gap = answer_of(model), GapOfFollowers(model.experts)
    engine = model.engine(Oracle([answer], errs_every=1), 2, gap, depth=3)
    tokens = asyncio.run(stream(engine, PROMPT, LONG))
    assert [token.id for token in tokens] == answer[len(PROMPT) :]
    assert gap.num_gaps > 0


class Broken(Oracle):
    """Its own weights turn out damaged as soon as it is asked for more."""

    async def draft(self, wishes: Sequence[Wish]) -> list[Drafts]:
        if any(wish.guessed for wish in wishes):
            raise ShoalError("damaged")
        return await super().draft(wishes)


def test_what_the_drafter_raises_ends_the_answer_and_leaves_nothing_under_way(model: Model) -> None:
    far = Far(model.experts)
    engine = model.engine(Broken([answer_of(model)], 1000), 2, far, depth=3)
    with pytest.raises(ShoalError, match="damaged"):
        asyncio.run(stream(engine, PROMPT, LONG))
    assert far.num_under_way == 0
    assert is_left_clean(engine)


def test_nothing_follows_where_the_cache_has_no_room_for_it(model: Model) -> None:
    """A budget for one cache as it is: one that has to grow for guesses does not."""
    prompt = tuple(range(220))
    answer, far = answer_of(model, LONG, prompt), Far(model.experts)
    engine = model.engine(
        Oracle([answer], 1000), 2, far, kv_cache_bytes=300 * model.trunk.cache_bytes_per_token, depth=8
    )
    tokens = asyncio.run(stream(engine, prompt, LONG))
    assert [token.id for token in tokens] == answer[220:]


def test_a_reader_that_falls_behind_stops_what_follows(model: Model) -> None:
    answer, far, events = answer_of(model), Far(model.experts), list[Event]()
    engine = model.engine(Oracle([answer], 1000), 2, far, events=events, depth=3)

    async def main() -> list[int]:
        async with aclosing(engine.stream(PROMPT, LONG)) as tokens:
            ids = [(await anext(tokens)).id]
            for _ in range(300 * TURNS):  # nobody reads, and there would be time for all
                await asyncio.sleep(0)
            assert far.num_under_way == 0
            assert sum(event.num_accepted + 1 for event in passes_of(events)) < 30
            return ids + [token.id async for token in tokens]

    assert asyncio.run(main()) == answer[len(PROMPT) :]
