"""Streams that decode go in as many groups as pay, and each gets the bits that it would get alone.

Run: pytest tests/client/engine/test_ping_pong.py
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoal.client.engine.engine_settings import PREFILL_CHUNK, EngineSettings
from shoal.client.engine.generate import Engine, Token
from shoal.client.engine.ping_pong import FIRST_TRIAL_AFTER, LAST_TRIAL_AFTER, TRIAL_PASSES, PassTime, PingPong
from shoal.client.engine.sampler import Sampling
from shoal.client.trunk.checkpoint import load_trunk
from shoal.client.trunk.linear_maker import TrunkFormat, linear_maker
from shoal.client.trunk.local_experts import LocalExperts
from shoal.client.trunk.model import UNTIMED, Timing, Trunk
from shoal.client.trunk.moe import RoutedExperts
from shoal.experts.choose_backend import KernelChoice, choose_backend
from shoal.experts.store import ModelStore
from shoal.experts.worker import InlineWorker
from shoal.kernels.cpu import is_available
from shoal.protocol.errors import CoverageGap, InvalidRequest, PeerFailed
from shoal.protocol.events import Event, LayerTimed
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import Rounding
from tests.checkpoints import SHAPES, write_checkpoint

# How many groups: the choice alone.


@dataclass(frozen=True)
class Machine:
    """Where layers take `trunk_s` for reading weights and `row_s` a row, then wait, all groups but one for free."""

    trunk_s: float
    row_s: float
    wait_s: float
    call_s: float = 0.0
    """What each group costs besides."""

    def took(self, num_rows: int, num_groups: int) -> PassTime:
        each = self.trunk_s + self.call_s + self.row_s * num_rows / num_groups
        total_s = max(each * num_groups, each * (num_groups - 1) / 4 + each + self.wait_s)  # four layers
        return PassTime(num_rows, num_groups, total_s, self.wait_s if num_groups == 1 else total_s * num_groups)


def asked(choice: PingPong, machine: Machine, num_rows: int, num_passes: int) -> list[int]:
    """The numbers of groups of some passes."""
    answers: list[int] = []
    for _ in range(num_passes):
        answers.append(choice.num_groups(num_rows))
        choice.took(machine.took(num_rows, min(answers[-1], num_rows)))
    return answers


EVEN = Machine(trunk_s=0.001, row_s=0.001, wait_s=0.032)
"""For 32 rows trunk and wait take about the same time."""


def test_where_trunk_and_wait_take_turns_groups_are_found_to_pay_and_kept() -> None:
    choice = PingPong(most=4)
    answers = asked(choice, EVEN, 32, 2000)
    assert set(answers[:FIRST_TRIAL_AFTER]) == {1}, "nothing is known yet"
    assert answers[-20:].count(2) + answers[-20:].count(3) + answers[-20:].count(4) == 20


def test_where_waiting_is_nearly_all_nothing_is_tried() -> None:
    assert set(asked(PingPong(most=4), replace(EVEN, wait_s=1.0), 32, 5000)) == {1}


def test_where_nothing_is_waited_for_nothing_is_tried() -> None:
    assert set(asked(PingPong(most=4), replace(EVEN, wait_s=0.0), 32, 5000)) == {1}


def test_a_trial_that_loses_is_made_again_and_less_and_less_often() -> None:
    dear = replace(EVEN, call_s=0.1)
    answers = asked(PingPong(most=4), dear, 32, 20_000)
    tried = [place for place, groups in enumerate(answers) if groups > 1]
    assert set(answers) == {1, 2}
    early, late = ([place for place in tried if (place < 1000) is is_early] for is_early in (True, False))
    assert len(early) > TRIAL_PASSES
    assert TRIAL_PASSES < len(late) <= TRIAL_PASSES * (1 + 19_000 // LAST_TRIAL_AFTER), "it may have become worth it"


def test_what_pays_no_more_is_given_up() -> None:
    choice = PingPong(most=4)
    assert asked(choice, EVEN, 32, 2000)[-1] > 1
    assert asked(choice, replace(EVEN, call_s=0.1), 32, 20_000)[-1] == 1


def test_half_of_the_streams_gone_it_begins_anew() -> None:
    choice = PingPong(most=4)
    assert asked(choice, EVEN, 32, 2000)[-1] > 1
    assert choice.num_groups(15) == 1


def test_passes_that_no_clock_has_timed_teach_nothing() -> None:
    assert set(asked(PingPong(most=4), Machine(0.0, 0.0, 0.0), 8, 5000)) == {1}


def test_a_trial_of_groups_that_do_not_come_about_ends() -> None:
    """One stream with drafts has rows, and makes no second group."""
    choice = PingPong(most=4)
    for _ in range(5000):
        wanted = choice.num_groups(8)
        choice.took(replace(EVEN.took(8, 1), waited_s=0.004))
    assert wanted == 1


@pytest.mark.parametrize("fixed", [1, 2, 3, 8])
def test_a_fixed_number_is_no_choice_and_never_more_than_may_be_under_way(fixed: int) -> None:
    assert set(asked(PingPong(4, fixed), EVEN, 32, 500)) == {min(fixed, 4)}


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    most=st.integers(1, 8),
    passes=st.lists(st.tuples(st.integers(1, 40), st.floats(0, 2), st.floats(0, 9)), max_size=400),
)
def test_whatever_passes_take_the_number_is_in_its_range(most: int, passes: list[tuple[int, float, float]]) -> None:
    choice = PingPong(most)
    for num_rows, total_s, waited_s in passes:
        groups = choice.num_groups(num_rows)
        assert 1 <= groups <= most
        choice.took(PassTime(num_rows, min(groups, num_rows), total_s, waited_s))


@pytest.mark.parametrize("groups", [0, 9])
def test_settings_out_of_range_are_refused(groups: int) -> None:
    with pytest.raises(InvalidRequest, match="decode_groups"):
        EngineSettings(decode_groups=groups)


# Streams in groups, in an engine.

SHAPE = replace(
    SHAPES["plain"],
    vocab_size=800,
    max_positions=3 * PREFILL_CHUNK,
    inter=64,
    dense_inter=96,
    num_experts=32,
    num_groups=4,
    topk_groups=2,
)
"""Widths at which rows have the same bits in every company (docs/adr/0010-continuous-batching.md)."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Model:
    trunk: Trunk
    experts: LocalExperts

    def engine(self, groups: int | None, experts: RoutedExperts | None = None, timing: Timing = UNTIMED) -> Engine:
        return Engine(self.trunk, experts or self.experts, settings=EngineSettings(decode_groups=groups), timing=timing)

    def alone(self, stream: "Stream") -> list[tuple[int, float]]:
        engine = self.engine(1)
        return read(run(engine, answer(engine, stream)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    if not is_available():
        pytest.skip("needs the C++ kernels: a C++20 compiler at installation")
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the promise has it
    directory = tmp_path_factory.mktemp("ping_pong") / "model"
    write_checkpoint(directory, SHAPE, seed=3)
    worker = InlineWorker()
    with ModelStore.open(directory, directory.parent / "cache") as store:
        experts = LocalExperts(store, choose_backend(KernelChoice.AUTO, 1), Rounding.FP32, worker)
        maker = linear_maker(TrunkFormat.AS_PUBLISHED, torch.float32, 1)
        yield Model(load_trunk(store, worker, torch.float32, maker=maker), experts)
    torch.set_num_threads(before)


class Far(RoutedExperts):
    """Experts whose answers take some turns of the loop, each another number of them; it counts who waits."""

    def __init__(self, experts: RoutedExperts, at_call: Callable[[Tensor], None] = lambda x: None) -> None:
        self._experts = experts
        self._at_call = at_call
        self._chance = random.Random(5)
        self.sizes: list[int] = []
        self.num_waiting = 0
        self.most_waiting = 0

    async def __call__(self, layer: LayerId, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        self._at_call(x)
        self.sizes.append(len(x))
        self.num_waiting += 1
        self.most_waiting = max(self.most_waiting, self.num_waiting)
        try:
            for _ in range(self._chance.randrange(40)):
                await asyncio.sleep(0)
            return await self._experts(layer, x, topk_idx, topk_weights)
        finally:
            self.num_waiting -= 1


@dataclass(frozen=True)
class Stream:
    prompt: tuple[int, ...]
    num_tokens: int = 12
    temperature: float = 0.0


STREAMS = [
    Stream(tuple(i * 7 % 800 for i in range(length)), num_tokens, temperature)
    for length, num_tokens, temperature in (
        (3, 20, 0.0),
        (40, 9, 1.0),
        (1, 14, 0.0),
        (PREFILL_CHUNK + 5, 8, 0.0),
        (17, 1, 1.0),
        (70, 20, 0.7),
        (9, 16, 0.0),
    )
]


async def answer(engine: Engine, stream: Stream) -> list[Token]:
    sampling = Sampling(stream.temperature, max_tokens=stream.num_tokens, ignore_eos=True, seed=1)
    async with aclosing(engine.stream(stream.prompt, sampling)) as tokens:
        return [token async for token in tokens]


def read(tokens: list[Token]) -> list[tuple[int, float]]:
    return [(token.id, token.logprob) for token in tokens]


def run(engine: Engine, work: Coroutine[None, None, Result]) -> Result:
    """Run it, and see that nothing is left."""

    async def main() -> Result:
        result = await work
        load = engine.load
        assert (load.num_running, load.num_waiting, load.kv_bytes) == (0, 0, 0)
        assert len(asyncio.all_tasks()) == 1
        return result

    return asyncio.run(main())


async def until_decoding(engine: Engine, count: int) -> None:
    """Let the loop turn until so many streams decode."""
    while sum(sequence.is_decoding for sequence in engine._scheduler.sequences) < count:  # noqa: ASYNC110
        await asyncio.sleep(0)


@pytest.mark.parametrize("groups", [1, 2, 3, 4])
def test_streams_of_mixed_lengths_have_the_same_bits_in_any_number_of_groups(model: Model, groups: int) -> None:
    far = Far(model.experts)
    engine = model.engine(groups, far)

    async def together() -> list[list[Token]]:
        return await asyncio.gather(*(answer(engine, stream) for stream in STREAMS))

    for stream, tokens in zip(STREAMS, run(engine, together()), strict=True):
        assert read(tokens) == model.alone(stream)


def test_while_one_group_waits_the_next_one_asks(model: Model) -> None:
    """Four streams that decode: two frames of two rows, both under way at a time."""
    far = Far(model.experts)
    engine = model.engine(2, far)

    async def together() -> None:
        await asyncio.gather(*(answer(engine, Stream((5, i), 40)) for i in range(4)))

    run(engine, together())
    assert far.most_waiting == 2
    assert far.sizes.count(2) > len(far.sizes) / 2


def test_a_single_stream_makes_one_group(model: Model) -> None:
    far = Far(model.experts)
    engine = model.engine(4, far)
    assert read(run(engine, answer(engine, STREAMS[0]))) == model.alone(STREAMS[0])
    assert far.most_waiting == 1


FOUR = [Stream((3, 4, 5 + i), 24) for i in range(4)]


def results(engine: Engine, streams: list[Stream]) -> list[list[tuple[int, float]] | BaseException]:
    async def main() -> list[list[Token] | BaseException]:
        return await asyncio.gather(*(answer(engine, stream) for stream in streams), return_exceptions=True)

    return [each if isinstance(each, BaseException) else read(each) for each in run(engine, main())]


def gap_in(layer: LayerId) -> CoverageGap:
    return CoverageGap(layer, [ExpertId(expert) for expert in range(SHAPE.num_experts)], 1.0)


@pytest.mark.parametrize("error", [gap_in, lambda layer: PeerFailed("all replicas")], ids=["gap", "unknown rows"])
@pytest.mark.parametrize("place", [0, 1], ids=["first", "second"])
def test_what_one_group_loses_the_other_group_does_not(
    model: Model, error: Callable[[LayerId], Exception], place: int
) -> None:
    """All holders are gone while one group asks: its two streams end, the other two run the token again."""
    far, num_full = Far(model.experts), 0

    async def dying(layer: LayerId, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        nonlocal num_full
        num_full += len(x) == 2
        if len(x) == 2 and num_full == 21 + place:
            raise error(layer)
        return await far(layer, x, topk_idx, topk_weights)

    ended = results(model.engine(2, dying), FOUR)
    lost = [place for place, result in enumerate(ended) if isinstance(result, BaseException)]
    assert lost in ([0, 1], [2, 3])
    for place, result in enumerate(ended):
        if place not in lost:
            assert result == model.alone(FOUR[place])


@pytest.mark.parametrize("leaver", [0, 3], ids=["of the first group", "of the second group"])
def test_who_leaves_while_its_group_is_in_flight_takes_nothing_from_the_others(model: Model, leaver: int) -> None:
    far = Far(model.experts)
    engine = model.engine(2, far)

    async def main() -> list[list[Token]]:
        tasks = [asyncio.create_task(answer(engine, stream)) for stream in FOUR]
        await until_decoding(engine, 4)
        while far.num_waiting < 2:  # noqa: ASYNC110  # nobody announces it
            await asyncio.sleep(0)
        tasks[leaver].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks.pop(leaver)
        assert engine.load.num_running == 3
        return await asyncio.gather(*tasks)

    stayed = [stream for place, stream in enumerate(FOUR) if place != leaver]
    for stream, tokens in zip(stayed, run(engine, main()), strict=True):
        assert read(tokens) == model.alone(stream)


def test_when_all_leave_in_mid_pass_no_group_goes_on(model: Model) -> None:
    far = Far(model.experts)
    engine = model.engine(2, far)

    async def main() -> list[Token]:
        tasks = [asyncio.create_task(answer(engine, stream)) for stream in FOUR]
        await until_decoding(engine, 4)
        while far.num_waiting < 2:  # noqa: ASYNC110  # nobody announces it
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in ended] == [asyncio.CancelledError] * 4
        assert (engine.load.num_running, far.num_waiting) == (0, 0)
        return await answer(engine, FOUR[0])

    assert read(run(engine, main())) == model.alone(FOUR[0])


def test_a_newcomers_prompt_goes_between_and_nobodys_bits_change(model: Model) -> None:
    far = Far(model.experts)
    engine = model.engine(4, far)
    newcomer = Stream(tuple(i * 11 % 800 for i in range(PREFILL_CHUNK + 90)), 6)

    async def main() -> list[list[Token]]:
        tasks = [asyncio.create_task(answer(engine, replace(stream, num_tokens=60))) for stream in FOUR]
        await until_decoding(engine, 4)
        return [await answer(engine, newcomer), *await asyncio.gather(*tasks)]

    first, *others = run(engine, main())
    assert read(first) == model.alone(newcomer)
    for stream, tokens in zip(FOUR, others, strict=True):
        assert read(tokens) == model.alone(replace(stream, num_tokens=60))
    assert PREFILL_CHUNK in far.sizes, "in a frame of its own"
    assert far.most_waiting <= 4


def test_an_engine_that_is_not_told_how_many_groups_finds_out(model: Model) -> None:
    """On a clock on which a wave's wait passes once for all waves that wait, and is as long as the trunk's work."""
    events, now, num_waiting, most_waiting = list[Event](), 0.0, 0, 0

    def clock() -> float:
        nonlocal now
        now += 0.001
        return now

    async def far(layer: LayerId, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        nonlocal now, num_waiting, most_waiting
        num_waiting += 1
        most_waiting = max(most_waiting, num_waiting)
        for _ in range(8):
            now += 0.001 / num_waiting
            await asyncio.sleep(0)
        num_waiting -= 1
        return await model.experts(layer, x, topk_idx, topk_weights)

    engine = model.engine(None, far, Timing(0, clock, events.append))

    async def together() -> list[list[Token]]:
        return await asyncio.gather(*(answer(engine, replace(stream, num_tokens=60)) for stream in FOUR))

    for stream, tokens in zip(FOUR, run(engine, together()), strict=True):
        assert read(tokens) == model.alone(replace(stream, num_tokens=60))
    assert most_waiting > 1, "it was tried"
    assert {event.num_tokens for event in events if isinstance(event, LayerTimed)} >= {2, 4}
