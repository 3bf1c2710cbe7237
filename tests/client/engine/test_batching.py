"""Streams that share a trunk get what they would get alone, and nothing of one reaches another.

Run: pytest tests/client/engine/test_batching.py
"""

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoal.client.engine.engine_settings import PREFILL_CHUNK, EngineSettings
from shoal.client.engine.generate import Engine, EngineLoad, Token
from shoal.client.engine.sampler import Sampling
from shoal.client.engine.sequence import MAX_UNREAD
from shoal.client.trunk.checkpoint import load_trunk
from shoal.client.trunk.linear_maker import TrunkFormat, linear_maker
from shoal.client.trunk.local_experts import LocalExperts
from shoal.client.trunk.model import Timing, Trunk
from shoal.client.trunk.moe import RoutedExperts
from shoal.experts.choose_backend import KernelChoice, choose_backend
from shoal.experts.store import ModelStore
from shoal.experts.worker import InlineWorker
from shoal.kernels.cpu import is_available
from shoal.protocol.errors import (
    Busy,
    ContextLengthExceeded,
    CoverageGap,
    Draining,
    IntegrityError,
    InvalidRequest,
    NonFinite,
    PeerFailed,
    ShoalError,
)
from shoal.protocol.events import Event, LayerTimed, PassTaken, PrefillDone
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import Rounding
from tests.checkpoints import SHAPES, write_checkpoint

CONTEXT = 700
SHAPE = replace(SHAPES["plain"], vocab_size=800, max_positions=CONTEXT)
EVEN_SHAPE = replace(SHAPE, inter=64, dense_inter=96, num_experts=32, num_groups=4, topk_groups=2)
"""Widths at which torch's silu and sigmoid take every element of a row the same way: multiples of two vectors of 16."""
LOGPROB_BOUND = 1e-4
"""Ten times the oracle's bound on a logit; measured 2e-6."""


@dataclass(frozen=True)
class Model:
    """One trunk for all tests: an engine is cheap to make."""

    trunk: Trunk
    experts: LocalExperts
    logprob_bound: float
    """How far a stream's log-probabilities may be from those that it would have alone."""

    def engine(self, settings: EngineSettings = EngineSettings(), experts: RoutedExperts | None = None) -> Engine:  # noqa: B008
        return Engine(self.trunk, experts or self.experts, draw_seed=lambda: 7, settings=settings)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """What is torch's in a packed trunk (attention, norms) sums as its threads part the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("batching") / "model"
    write_checkpoint(directory, SHAPE, seed=3)
    return directory


@pytest.fixture(scope="module")
def even_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("even") / "model"
    write_checkpoint(directory, EVEN_SHAPE, seed=3)
    return directory


def open_model(directory: Path, trunk_format: TrunkFormat, dtype: torch.dtype, logprob_bound: float) -> Model:
    store, worker = ModelStore.open(directory, directory.parent / "cache"), InlineWorker()
    rounding = Rounding.FP32 if dtype is torch.float32 else Rounding.BF16
    experts = LocalExperts(store, choose_backend(KernelChoice.AUTO, 1), rounding, worker)
    trunk = load_trunk(store, worker, dtype, maker=linear_maker(trunk_format, dtype, 1))
    return Model(trunk, experts, logprob_bound)


@pytest.fixture(scope="module")
def model(directory: Path) -> Model:
    return open_model(directory, TrunkFormat.DENSE, torch.float32, LOGPROB_BOUND)


EXACT = pytest.mark.skipif(not is_available(), reason="needs the C++ kernels: a C++20 compiler at installation")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("even_directory", TrunkFormat.AS_PUBLISHED, torch.float32, 0.0), id="packed_fp32", marks=EXACT),
        pytest.param(("even_directory", TrunkFormat.AS_PUBLISHED, torch.bfloat16, 0.0), id="packed_bf16", marks=EXACT),
        pytest.param(
            ("directory", TrunkFormat.AS_PUBLISHED, torch.float32, LOGPROB_BOUND), id="ragged_packed_fp32", marks=EXACT
        ),
        pytest.param(("directory", TrunkFormat.DENSE, torch.float32, LOGPROB_BOUND), id="dense_fp32"),
    ],
)
def each_model(request: pytest.FixtureRequest) -> Model:
    """Trunks that promise the same tokens; the packed ones the same bits, where no row is ragged."""
    directory, trunk_format, dtype, logprob_bound = request.param
    return open_model(request.getfixturevalue(directory), trunk_format, dtype, logprob_bound)


@dataclass(frozen=True)
class Asked:
    """One stream: what it asks for, when it comes, and when it goes."""

    prompt: tuple[int, ...]
    sampling: Sampling
    starts_after: int = 0
    """Turns of the event loop."""
    leaves_after: int | None = None
    """Tokens; None: it stays to the end."""

    def given(self, tokens: list[Token]) -> list[Token]:
        return tokens if self.leaves_after is None else tokens[: self.leaves_after]


async def answer(engine: Engine, asked: Asked) -> list[Token]:
    for _ in range(asked.starts_after):
        await asyncio.sleep(0)
    tokens: list[Token] = []
    async with aclosing(engine.stream(asked.prompt, asked.sampling)) as stream:
        async for token in stream:
            tokens.append(token)
            if len(tokens) == asked.leaves_after:
                break
    return tokens


async def until(is_so: Callable[[], bool]) -> None:
    """Let the loop turn until something is so; each turn is a step of the engine at most."""
    while not is_so():  # noqa: ASYNC110  # nobody announces it
        await asyncio.sleep(0)


def is_left_clean(engine: Engine) -> bool:
    load = engine.load
    return (load.num_running, load.num_waiting, load.kv_bytes) == (0, 0, 0) and len(asyncio.all_tasks()) == 1


def run(engine: Engine, work: Coroutine[None, None, list[list[Token]]]) -> list[list[Token]]:
    async def main() -> list[list[Token]]:
        result = await work
        assert is_left_clean(engine)
        return result

    return asyncio.run(main())


def together(engine: Engine, streams: Iterable[Asked]) -> list[list[Token]]:
    async def all_of_them() -> list[list[Token]]:
        return await asyncio.gather(*(answer(engine, asked) for asked in streams))

    return run(engine, all_of_them())


def alone(engine: Engine, asked: Asked) -> list[Token]:
    async def one() -> list[list[Token]]:
        return [await answer(engine, replace(asked, starts_after=0, leaves_after=None))]

    return run(engine, one())[0]


def assert_same(tokens: list[Token], expected: list[Token], bound: float = LOGPROB_BOUND) -> None:
    assert [token.id for token in tokens] == [token.id for token in expected]
    assert [token.finish_reason for token in tokens] == [token.finish_reason for token in expected]
    assert [token.logprob for token in tokens] == pytest.approx([token.logprob for token in expected], abs=bound, rel=0)


prompts = st.one_of(st.integers(1, 40), st.sampled_from([PREFILL_CHUNK, PREFILL_CHUNK + 1, 2 * PREFILL_CHUNK + 3]))


@st.composite
def streams(draw: st.DrawFn) -> Asked:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    prompt = torch.randint(0, SHAPE.vocab_size, (draw(prompts),), generator=generator)
    sampling = Sampling(
        temperature=draw(st.sampled_from([0.0, 1.0])),
        seed=draw(st.integers(0, 1000)),
        max_tokens=draw(st.integers(1, 10)),
        ignore_eos=draw(st.booleans()),
    )
    leaves_after = draw(st.one_of(st.none(), st.integers(1, 5)))
    return Asked(tuple(prompt.tolist()), sampling, draw(st.integers(0, 60)), leaves_after)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    asked=st.lists(streams(), min_size=2, max_size=9),
    max_running=st.sampled_from([2, 4, 32]),
    groups=st.sampled_from([1, 2, 3]),
)
def test_every_stream_gets_what_it_would_get_alone_whoever_comes_and_goes(
    each_model: Model, asked: list[Asked], max_running: int, groups: int
) -> None:
    engine = each_model.engine(EngineSettings(max_running, decode_groups=groups))
    for each, tokens in zip(asked, together(engine, asked), strict=True):
        assert_same(tokens, each.given(alone(engine, each)), each_model.logprob_bound)


def greedy(*prompt: int, max_tokens: int = 12) -> Asked:
    return Asked(prompt, Sampling(max_tokens=max_tokens, ignore_eos=True))


def test_a_budget_for_kv_caches_costs_time_and_no_token(model: Model) -> None:
    """Room for 600 tokens: three streams of 500 take turns, and one that outgrows its room pushes the youngest out."""
    budget = 600 * model.trunk.cache_bytes_per_token
    engine, peaks = model.engine(EngineSettings(kv_cache_bytes=budget)), []
    asked = [replace(greedy(*range(200 + i), max_tokens=290), starts_after=i) for i in range(3)]
    spied = spy(model.experts, lambda: peaks.append(engine.load.kv_bytes))
    engine._passes._routed_experts = spied
    tokens = together(engine, asked)
    assert max(peaks) <= budget
    for each, got in zip(asked, tokens, strict=True):
        assert_same(got, alone(model.engine(), each))


def test_the_context_is_what_fits_the_budget(model: Model) -> None:
    engine = model.engine(EngineSettings(kv_cache_bytes=100 * model.trunk.cache_bytes_per_token))
    assert engine.context_length == 100
    with pytest.raises(ContextLengthExceeded):
        alone(engine, greedy(*range(90), max_tokens=11))
    assert len(alone(engine, Asked(tuple(range(90)), Sampling(ignore_eos=True)))) == 10


def spy(experts: RoutedExperts, act: Callable[[], None]) -> RoutedExperts:
    async def spied(layer: LayerId, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        act()
        return await experts(layer, x, topk_idx, topk_weights)

    return spied


def test_one_pass_carries_all_streams(model: Model) -> None:
    widths: list[int] = []

    async def counted(layer: LayerId, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        widths.append(len(x))
        return await model.experts(layer, x, topk_idx, topk_weights)

    together(model.engine(experts=counted), [greedy(3, 4, 5 + i, max_tokens=20) for i in range(8)])
    assert max(widths) >= 8
    assert len(widths) <= 2 * (20 + 8)  # MoE layers, passes: a chunk for each prompt and all tokens together


def test_one_more_than_may_run_and_wait_is_busy_and_harms_nobody(model: Model) -> None:
    engine = model.engine(EngineSettings(max_running=1, max_waiting=1))

    async def crowd() -> list[list[Token]]:
        first, second = (asyncio.create_task(answer(engine, greedy(1, i))) for i in range(2))
        await asyncio.sleep(0)
        with pytest.raises(Busy) as caught:
            await answer(engine, greedy(3))
        assert caught.value.retry_after_s > 0
        return [await first, await second]

    tokens = run(engine, crowd())
    assert_same(tokens[0], alone(engine, greedy(1, 0)))
    assert_same(tokens[1], alone(engine, greedy(1, 1)))


def test_a_reader_that_stops_reading_holds_up_itself_only(model: Model) -> None:
    engine = model.engine()

    async def one_reads_and_one_does_not() -> list[list[Token]]:
        idle = engine.stream((5,), Sampling(max_tokens=100, ignore_eos=True))
        first = await anext(idle)
        tokens = await answer(engine, greedy(6, max_tokens=60))
        sequence = next(iter(engine._scheduler.sequences))
        assert len(sequence.ids) <= 1 + 1 + MAX_UNREAD
        rest = [first] + [token async for token in idle]
        return [tokens, rest]

    quick, slow = run(engine, one_reads_and_one_does_not())
    assert_same(quick, alone(engine, greedy(6, max_tokens=60)))
    assert_same(slow, alone(engine, greedy(5, max_tokens=100)))


def test_a_stream_that_is_cancelled_stops_within_one_token_and_the_others_go_on(model: Model) -> None:
    engine = model.engine()

    async def main() -> list[list[Token]]:
        leaver = asyncio.create_task(answer(engine, greedy(5, max_tokens=500)))
        stayer = asyncio.create_task(answer(engine, greedy(6, max_tokens=50)))
        await until(lambda: engine.load.num_running == 2)
        leaver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaver
        assert engine.load.num_running == 1
        return [await stayer]

    assert_same(run(engine, main())[0], alone(engine, greedy(6, max_tokens=50)))


def test_a_pass_that_only_leavers_need_is_cancelled_and_those_who_wait_go_on(model: Model) -> None:
    is_held, holds = asyncio.Event(), True

    async def held_once(layer: LayerId, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        nonlocal holds
        if holds:
            holds = False
            is_held.set()
            await asyncio.Event().wait()
        return await model.experts(layer, x, topk_idx, topk_weights)

    engine = model.engine(EngineSettings(max_running=1), held_once)

    async def main() -> list[list[Token]]:
        leaver = asyncio.create_task(answer(engine, greedy(5)))
        await is_held.wait()
        waiter = asyncio.create_task(answer(engine, greedy(6)))
        await asyncio.sleep(0)
        leaver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaver
        return [await waiter]

    assert_same(run(engine, main())[0], alone(engine, greedy(6)))


def failing_at(experts: RoutedExperts, call: int, fail: Callable[[LayerId, Tensor], Exception]) -> RoutedExperts:
    """Experts of which one call fails."""
    left = call

    async def failing(layer: LayerId, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        nonlocal left
        left -= 1
        if left == 0:
            raise fail(layer, topk_idx)
        return await experts(layer, x, topk_idx, topk_weights)

    return failing


async def outcome(engine: Engine, asked: Asked) -> list[Token] | Exception:
    try:
        return await answer(engine, asked)
    except (ShoalError, ZeroDivisionError) as error:
        return error


def outcomes(engine: Engine, asked: Iterable[Asked]) -> list[list[Token] | Exception]:
    async def main() -> list[list[Token] | Exception]:
        results = await asyncio.gather(*(outcome(engine, each) for each in asked))
        assert is_left_clean(engine)
        return results

    return asyncio.run(main())


FOUR = [greedy(3, 4, 5 + i) for i in range(4)]


def test_a_coverage_gap_ends_the_streams_that_were_routed_there_and_no_others(model: Model) -> None:
    routed: list[list[int]] = []

    def gap(layer: LayerId, topk_idx: Tensor) -> CoverageGap:
        expert = int(topk_idx[0, 0])
        routed.append((topk_idx == expert).any(dim=1).tolist())
        return CoverageGap(layer, [ExpertId(expert)], 1.0)

    call = 2 * 4 + 5  # the prompts' passes, and a few with all four
    results = outcomes(model.engine(experts=failing_at(model.experts, call, gap)), FOUR)
    assert [isinstance(result, CoverageGap) for result in results] == routed[0]
    assert 0 < sum(routed[0]) < 4, "the weights' seed has lost its point"
    for asked, result in zip(FOUR, results, strict=True):
        if not isinstance(result, Exception):
            assert_same(result, alone(model.engine(), asked))


@pytest.mark.parametrize("error", [PeerFailed("all replicas"), ZeroDivisionError("a bug")])
def test_an_error_that_may_be_of_all_ends_all_of_the_pass_and_the_engine_goes_on(
    model: Model, error: Exception
) -> None:
    engine = model.engine(experts=failing_at(model.experts, 13, lambda layer, topk_idx: error))
    assert outcomes(engine, FOUR) == [error] * 4
    assert_same(alone(engine, FOUR[0]), alone(model.engine(), FOUR[0]))


@pytest.mark.parametrize("refuses_nan", [False, True], ids=["locally", "as a swarm does"])
def test_numbers_that_are_none_end_the_stream_that_has_them(model: Model, refuses_nan: bool) -> None:
    async def swarm_like(layer: LayerId, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        if refuses_nan and not bool(torch.isfinite(x).all()):
            raise IntegrityError("not finite")
        return await model.experts(layer, x, topk_idx, topk_weights)

    weights = model.trunk._weights
    assert weights.embed_tokens is not None
    embedding = weights.embed_tokens.clone()
    embedding[9] = torch.nan
    trunk = Trunk(model.trunk.config, model.trunk.layers, replace(weights, embed_tokens=embedding), InlineWorker())
    asked = [greedy(3, 4), greedy(9), greedy(5, 6)]
    results = outcomes(Engine(trunk, swarm_like), asked)
    assert isinstance(results[1], IntegrityError if refuses_nan else NonFinite)
    for place in (0, 2):
        result = results[place]
        assert isinstance(result, list)
        assert_same(result, alone(model.engine(), asked[place]))


class Broken:
    """A grammar with a bug, or one that cannot go on."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def allowed(self) -> Tensor | None:
        return None

    def accept(self, token_id: int) -> None:
        raise self._error


def test_a_grammar_that_fails_ends_its_own_stream(model: Model) -> None:
    engine = model.engine()

    async def constrained() -> list[Token]:
        return [
            token async for token in engine.stream((5, 6), Sampling(max_tokens=9), Broken(ZeroDivisionError("bug")))
        ]

    async def main() -> list[list[Token]]:
        tokens, error = await asyncio.gather(answer(engine, FOUR[0]), constrained(), return_exceptions=True)
        assert isinstance(error, ZeroDivisionError)
        assert isinstance(tokens, list)
        return [tokens]

    assert_same(run(engine, main())[0], alone(engine, FOUR[0]))


def test_prompts_are_scored_beside_streams_as_alone(model: Model) -> None:
    engine, prompt = model.engine(), [i % SHAPE.vocab_size for i in range(PREFILL_CHUNK + 2)]

    async def main() -> list[list[Token]]:
        tokens, scores = await asyncio.gather(answer(engine, FOUR[0]), engine.score(prompt, 1))
        again = await engine.score(prompt, 1)
        assert [score.token_id for score in scores] == prompt
        for one, other in zip(scores[1:], again[1:], strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=LOGPROB_BOUND)
        return [tokens]

    assert_same(run(engine, main())[0], alone(engine, FOUR[0]))


def test_closing_the_engine_ends_every_stream_with_an_error_and_takes_no_more(model: Model) -> None:
    engine = model.engine(EngineSettings(max_running=1))

    async def main() -> None:
        streams = [asyncio.create_task(outcome(engine, greedy(3, i, max_tokens=500))) for i in range(2)]
        await until(lambda: engine.load.num_running == 1)
        await engine.aclose()
        for stream in streams:
            assert isinstance(await stream, Draining)
        assert isinstance(await outcome(engine, greedy(1)), Draining)
        await engine.aclose()
        assert is_left_clean(engine)

    asyncio.run(main())


def test_a_stream_that_is_dropped_unread_is_collected(model: Model) -> None:
    engine = model.engine()

    async def main() -> None:
        await anext(engine.stream((5,), Sampling(max_tokens=500, ignore_eos=True)))
        gc.collect()
        await until(lambda: engine.load == EngineLoad(0, 0, 0, engine.settings.kv_cache_bytes))

    asyncio.run(main())


def test_what_is_refused_is_refused_before_it_takes_a_place(model: Model) -> None:
    engine = model.engine()
    with pytest.raises(InvalidRequest):
        alone(engine, Asked((), Sampling()))
    assert engine.load.num_running + engine.load.num_waiting == 0


def test_events_say_where_the_time_of_a_pass_and_of_a_stream_went(model: Model) -> None:
    events, now = list[Event](), iter(range(10**6))
    engine = Engine(model.trunk, model.experts, timing=Timing(0, lambda: float(next(now)), events.append))
    together(engine, [greedy(3, 4, 5, max_tokens=4), greedy(*range(300), max_tokens=4)])
    passes = [event for event in events if isinstance(event, PassTaken)]
    layers = [event for event in events if isinstance(event, LayerTimed)]
    prefills = [event for event in events if isinstance(event, PrefillDone)]
    assert [event.pass_id for event in passes] == list(range(1, len(passes) + 1))
    assert {event.pass_id for event in layers} == {taken.pass_id for taken in passes}
    for taken in passes:
        of_this = [event for event in layers if event.pass_id == taken.pass_id]
        for layer in model.trunk.layers:
            num_tokens = sum(event.num_tokens for event in of_this if event.layer == layer)
            assert num_tokens == taken.num_decoding + taken.num_prefilled
        num_waves = len(of_this) // len(model.trunk.layers)
        in_layers = sum(event.attention_s + event.route_s + event.experts_s for event in of_this)
        assert in_layers + taken.head_s + taken.sampling_s <= num_waves * taken.total_s
    assert sum(taken.num_prefilled for taken in passes) == 3 + 300
    assert sorted(event.num_prompt_tokens for event in prefills) == [3, 300]
    assert all(event.queue_s >= 0 < event.prefill_s for event in prefills)
