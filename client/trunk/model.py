"""The trunk in data-flow order: embed -> blocks (attention, feed-forward) -> norm -> head.

Arithmetic runs on an injected worker, so that the event loop is free for the network. A trunk may hold any span of
the layers: `embed` and `finish` belong to the first and the last span. Knows no tokens as text, no peers, no drafts.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from shoal.client.trunk.attention import Attention
from shoal.client.trunk.config import ModelConfig
from shoal.client.trunk.inference import InferenceWorker
from shoal.client.trunk.kv_cache import INITIAL_CAPACITY, LatentCache, Rows, commit
from shoal.client.trunk.layers import Mlp, RmsNorm
from shoal.client.trunk.linear import Linear
from shoal.client.trunk.moe import ExpertsHere, Moe, MoeInput, MoeOutput, RoutedExperts
from shoal.client.trunk.rope import RotaryEmbedding, Rotation
from shoal.client.trunk.wavefront import MayEnter, Turn, Wavefront
from shoal.experts.worker import Worker
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.events import LayerTimed, Observer, ignore
from shoal.protocol.limits import MAX_TOKENS_PER_FRAME

JOB_S = 0.02
"""Layers of a model that is all here share a job for so long, in seconds, and one layer more: a change of threads costs
a small layer a sixth of its time, and a pass can be cancelled between two jobs only."""


@dataclass(frozen=True, slots=True)
class Stream:
    """The residual stream between two layers. `pending` is added by whoever continues it: one job fewer per layer."""

    hidden: Tensor
    """dtype[T, H]"""
    pending: MoeOutput | None = None

    def settled(self) -> Tensor:
        """dtype[T, H] with everything added."""
        return self.hidden if self.pending is None else self.hidden + self.pending.total()


@dataclass(frozen=True, slots=True)
class Timing:
    """Who is told how long each layer of a pass took. clock: seconds; read in the loop and on the worker."""

    pass_id: int
    clock: Callable[[], float]
    observe: Observer


UNTIMED = Timing(0, lambda: 0.0, ignore)
"""Of a pass that nobody watches."""


@dataclass(frozen=True, slots=True)
class Pass:
    """What all layers of one forward pass share."""

    rotation: Rotation
    rows: Sequence[Rows]
    routed_experts: RoutedExperts
    worker: Worker
    timing: Timing = UNTIMED


@dataclass(frozen=True, slots=True)
class Wave:
    """Rows that go through the layers together; a pass may have several (`wavefront.py`)."""

    ids: Tensor
    """i64[T]"""
    rows: Sequence[Rows]
    """Whose tokens they are, each sequence once, their counts adding up to T."""
    routed_experts: RoutedExperts
    """Who is asked for this wave's experts."""


@dataclass(frozen=True, slots=True)
class Attended:
    """What the first job of an MoE layer leaves."""

    hidden: Tensor
    """dtype[T, H]"""
    moe_input: MoeInput
    route_s: float


@dataclass(frozen=True, slots=True)
class Block:
    """One decoder layer."""

    input_layernorm: RmsNorm
    self_attn: Attention
    post_attention_layernorm: RmsNorm
    mlp: Mlp | Moe

    async def forward(self, stream: Stream, step: Pass, on_attended: Callable[[], None] = lambda: None) -> Stream:
        """One layer: a single job where nobody else has a part in it, else attention, then the experts.

        on_attended: told when the caches have this layer's rows.
        """
        if isinstance(self.mlp, Mlp) or isinstance(step.routed_experts, ExpertsHere):
            stream, timed = await step.worker.run(self.compute, stream, step)
            on_attended()
            step.timing.observe(timed)
            return stream
        clock = step.timing.clock
        started = clock()
        attended = await step.worker.run(self._until_dispatch, self.mlp, stream, step)
        on_attended()
        dispatched = clock()
        output = await self.mlp.forward(attended.moe_input, step.routed_experts, step.worker)
        attention_s = dispatched - started - attended.route_s
        step.timing.observe(self._timed(step, attended.hidden, attention_s, attended.route_s, clock() - dispatched))
        return Stream(attended.hidden, output)

    def compute(self, stream: Stream, step: Pass) -> tuple[Stream, LayerTimed]:
        """`forward` of a layer in which nobody else has a part. Runs on the worker."""
        clock = step.timing.clock
        started = clock()
        if isinstance(self.mlp, Mlp):
            hidden = self._attend(stream, step)
            hidden = hidden + self.mlp(self.post_attention_layernorm(hidden))
            return Stream(hidden), self._timed(step, hidden, clock() - started, 0.0, 0.0)
        if not isinstance(step.routed_experts, ExpertsHere):
            raise InvalidRequest(f"the experts of layer {self.self_attn.layer} are elsewhere")
        attended = self._until_dispatch(self.mlp, stream, step)
        dispatched = clock()
        output = self.mlp.compute(attended.moe_input, step.routed_experts)
        attention_s = dispatched - started - attended.route_s
        timed = self._timed(step, attended.hidden, attention_s, attended.route_s, clock() - dispatched)
        return Stream(attended.hidden, output), timed

    def _until_dispatch(self, moe: Moe, stream: Stream, step: Pass) -> Attended:
        hidden = self._attend(stream, step)
        started = step.timing.clock()
        moe_input = moe.route(self.post_attention_layernorm(hidden))
        return Attended(hidden, moe_input, step.timing.clock() - started)

    def _attend(self, stream: Stream, step: Pass) -> Tensor:
        hidden = stream.settled()
        return hidden + self.self_attn(self.input_layernorm(hidden), step.rotation, step.rows)

    def _timed(self, step: Pass, hidden: Tensor, attention_s: float, route_s: float, experts_s: float) -> LayerTimed:
        return LayerTimed(step.timing.pass_id, self.self_attn.layer, len(hidden), attention_s, route_s, experts_s)


@dataclass(frozen=True, slots=True)
class TrunkWeights:
    """A span of layers. The embedding belongs to the first span; norm and head to the last."""

    dtype: torch.dtype
    embed_tokens: Tensor | None
    """float[V, H], in the dtype that it is held in; its rows become `dtype`."""
    blocks: tuple[Block, ...]
    norm: RmsNorm | None
    lm_head: Linear | None
    resident_bytes: int
    """Memory that all of them hold, in bytes."""


class Trunk:
    """The model less its routed experts, or a span of its layers. Stateless: a cache carries each sequence."""

    def __init__(self, config: ModelConfig, layers: range, weights: TrunkWeights, worker: Worker) -> None:
        self.config = config
        self.layers = layers
        """The decoder layers that this trunk holds."""
        self.dtype = weights.dtype
        self.resident_bytes = weights.resident_bytes
        """Memory that the weights take, in bytes."""
        self.worker = InferenceWorker(worker)
        self._weights = weights
        self._rotary = RotaryEmbedding(config)

    def new_cache(self, room: int = INITIAL_CAPACITY, max_tokens: int | None = None) -> LatentCache:
        """An empty KV cache for one sequence through `layers`.

        room: tokens that it takes without growing. max_tokens: the most it will take; None: the model's context.
        """
        limit = max_tokens or self.config.max_position_embeddings
        return LatentCache(self.layers, self.config.cache_width, self.dtype, limit, room)

    @property
    def cache_bytes_per_token(self) -> int:
        """What a KV cache takes for one token, in bytes."""
        return len(self.layers) * self.config.cache_width * self.dtype.itemsize

    async def forward(self, ids: Tensor, cache: LatentCache, routed_experts: RoutedExperts) -> Tensor:
        """`forward_rows` for new tokens of one sequence. ids: i64[T] -> normed hidden states dtype[T, H]."""
        return await self.forward_rows(ids, [Rows(len(ids), cache)], routed_experts)

    async def forward_rows(
        self, ids: Tensor, rows: Sequence[Rows], routed_experts: RoutedExperts, timing: Timing = UNTIMED
    ) -> Tensor:
        """Run new tokens of several sequences through the whole model in one pass.

        ids: i64[T], the new tokens of each sequence in turn; rows: whose they are, each sequence once, their counts
        adding up to T. Returns normed hidden states dtype[T, H]. T is 1 .. `protocol.limits.MAX_TOKENS_PER_FRAME`.

        A row comes out the same whoever shares the pass: bit for bit where the linear maps give it so (the C++ kernels
        do; torch in fp32 does from four rows on), else within fp32 rounding. docs/adr/0010-continuous-batching.md.

        Raises:
            InvalidRequest: T or counts out of range, an id outside the vocabulary, or only a span of layers is here.
            ContextLengthExceeded: a cache would hold more than its `max_tokens`.
            Whatever `routed_experts` raises.

        *Cancellation:* the caches are as before the call; the same tokens may be run again.
        """
        hidden = await self.embed(ids)
        hidden = await self.run_span(hidden, rows, routed_experts, timing)
        return await self.finish(hidden)

    async def forward_waves(
        self, waves: Sequence[Wave], depth: int, may_enter: MayEnter[Wave], timing: Timing = UNTIMED
    ) -> list[Tensor]:
        """Run waves through the whole model, as many at a time as `depth`: while one waits for its experts, others
        compute. A sequence's tokens may go in several waves, in their order.

        Returns the normed hidden states dtype[T, H] of the waves that were let in: the first, and those that
        `may_enter`; the caches have grown by their rows. Each comes out as `forward_rows` would have it, had the waves
        gone one after another.

        Raises and *Cancellation:* as `forward_rows`; the first error ends all waves.
        """
        placed = _behind_one_another(waves)
        for wave in placed:
            _check_rows(len(wave.ids), wave.rows)
        run_wave = partial(self.run_wave, timing=timing)
        hidden = await Wavefront(depth, run_wave).run(placed, may_enter)
        for wave in placed[: len(hidden)]:
            commit(wave.rows)
        return hidden

    async def run_wave(self, wave: Wave, turn: Turn, timing: Timing = UNTIMED) -> Tensor:
        """Run one wave in its turn, behind others of the same sequences: its rows say where (`Rows.at`).

        Returns its normed hidden states dtype[T, H]; the caches have its rows and do not count them: `commit` does.

        Raises and *Cancellation:* as `forward_rows`.
        """
        _check_rows(len(wave.ids), wave.rows)
        step = Pass(self._rotation_of(wave.rows), wave.rows, wave.routed_experts, self.worker, timing)
        stream = Stream(await self.embed(wave.ids))
        for block in self._weights.blocks:
            await turn.begin()
            stream = await block.forward(stream, step, turn.attended)
        return await self.finish(await self.worker.run(stream.settled))

    async def embed(self, ids: Tensor) -> Tensor:
        """ids: i64[T] -> dtype[T, H]."""
        if self._weights.embed_tokens is None:
            raise InvalidRequest(f"this trunk holds layers {_named(self.layers)}: the embedding is elsewhere")
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.config.vocab_size:
            raise InvalidRequest(f"token ids outside 0..{self.config.vocab_size - 1}")
        return F.embedding(ids, self._weights.embed_tokens).to(self.dtype)

    async def run_span(
        self, hidden: Tensor, rows: Sequence[Rows], routed_experts: RoutedExperts, timing: Timing = UNTIMED
    ) -> Tensor:
        """Run new tokens through this trunk's layers. dtype[T, H] -> dtype[T, H]; the caches grow by their counts."""
        _check_rows(len(hidden), rows)
        step = Pass(self._rotation_of(rows), rows, routed_experts, self.worker, timing)
        stream = Stream(hidden)
        blocks = deque(self._weights.blocks)
        while blocks:
            if isinstance(routed_experts, ExpertsHere):
                stream = await self._compute_some(blocks, stream, step)
            else:
                stream = await blocks.popleft().forward(stream, step)
        settled = await self.worker.run(stream.settled)
        commit(rows)
        return settled

    async def _compute_some(self, blocks: deque[Block], stream: Stream, step: Pass) -> Stream:
        """Run the first of the blocks, and as many after it as `JOB_S` has time for, in one job; take them away."""
        stream, timed = await self.worker.run(_until_time_is_up, tuple(blocks), stream, step)
        for each in timed:
            blocks.popleft()
            step.timing.observe(each)
        return stream

    def _rotation_of(self, rows: Sequence[Rows]) -> Rotation:
        return self.rotation([(some.start, some.count) for some in rows])

    def rotation(self, starts: Sequence[tuple[int, int]]) -> Rotation:
        """The rotation to positions start .. start + count - 1, for every (start, count) in turn."""
        positions = [torch.arange(start, start + count) for start, count in starts]
        return self._rotary.at(torch.cat(positions), self.dtype)

    async def finish(self, hidden: Tensor) -> Tensor:
        """The final norm: dtype[T, H] -> dtype[T, H]."""
        if self._weights.norm is None:
            raise InvalidRequest(f"this trunk holds layers {_named(self.layers)}: the final norm is elsewhere")
        return await self.worker.run(self._weights.norm, hidden)

    async def logits(self, hidden: Tensor) -> Tensor:
        """The head. hidden: dtype[N, H], as `finish` returns it -> f32[N, V]. Ask only for the rows you need."""
        if self._weights.lm_head is None:
            raise InvalidRequest(f"this trunk holds layers {_named(self.layers)}: the head is elsewhere")
        return await self.worker.run(self._head, self._weights.lm_head, hidden)

    def _head(self, lm_head: Linear, hidden: Tensor) -> Tensor:
        return lm_head(hidden).to(torch.float32)


def _until_time_is_up(blocks: Sequence[Block], stream: Stream, step: Pass) -> tuple[Stream, list[LayerTimed]]:
    """The stream after the blocks that were computed, and what each took. Runs on the worker."""
    clock, timed = step.timing.clock, list[LayerTimed]()
    started = clock()
    for block in blocks:
        stream, times = block.compute(stream, step)
        timed.append(times)
        if clock() - started >= JOB_S:
            break
    return stream, timed


def _behind_one_another(waves: Sequence[Wave]) -> list[Wave]:
    """The waves, with what each sequence has under way before its rows."""
    ends: dict[int, int] = {}
    placed: list[Wave] = []
    for wave in waves:
        rows = [replace(some, at=ends.get(id(some.cache), some.start)) for some in wave.rows]
        for some in rows:
            ends[id(some.cache)] = some.start + some.count
        placed.append(replace(wave, rows=rows))
    return placed


def _check_rows(num_tokens: int, rows: Sequence[Rows]) -> None:
    if not 1 <= num_tokens <= MAX_TOKENS_PER_FRAME:
        raise InvalidRequest(f"{num_tokens} tokens in one pass, expected 1..{MAX_TOKENS_PER_FRAME}")
    if sum(some.count for some in rows) != num_tokens or min(some.count for some in rows) < 1:
        raise InvalidRequest(f"rows of {[some.count for some in rows]} tokens for {num_tokens} in all")
    if len({id(some.cache) for some in rows}) != len(rows):
        raise InvalidRequest("a sequence stands twice in one pass")


def _named(layers: range) -> str:
    return f"{layers.start}..{layers.stop - 1}"
