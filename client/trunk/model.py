"""The trunk in data-flow order: embed -> blocks (attention, feed-forward) -> norm -> head.

Arithmetic runs on an injected worker, so that the event loop is free for the network. A trunk may hold any span of
the layers: `embed` and `finish` belong to the first and the last span. Knows no tokens as text, no peers, no drafts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from shoal.client.trunk.attention import Attention
from shoal.client.trunk.config import ModelConfig
from shoal.client.trunk.inference import InferenceWorker
from shoal.client.trunk.kv_cache import LatentCache
from shoal.client.trunk.layers import Mlp, RmsNorm
from shoal.client.trunk.linear import Linear
from shoal.client.trunk.moe import Moe, MoeInput, MoeOutput, RoutedExperts
from shoal.client.trunk.rope import RotaryEmbedding, Rotation
from shoal.experts.worker import Worker
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.limits import MAX_TOKENS_PER_FRAME


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
class Pass:
    """What all layers of one forward pass share."""

    rotation: Rotation
    cache: LatentCache
    routed_experts: RoutedExperts
    worker: Worker


@dataclass(frozen=True, slots=True)
class Block:
    """One decoder layer."""

    input_layernorm: RmsNorm
    self_attn: Attention
    post_attention_layernorm: RmsNorm
    mlp: Mlp | Moe

    async def forward(self, stream: Stream, step: Pass) -> Stream:
        """One layer: a single job where the feed-forward is dense, else attention, then the experts."""
        if isinstance(self.mlp, Mlp):
            return await step.worker.run(self._dense, self.mlp, stream, step)
        hidden, moe_input = await step.worker.run(self._until_dispatch, self.mlp, stream, step)
        return Stream(hidden, await self.mlp.forward(moe_input, step.routed_experts, step.worker))

    def _dense(self, mlp: Mlp, stream: Stream, step: Pass) -> Stream:
        hidden = self._attend(stream, step)
        return Stream(hidden + mlp(self.post_attention_layernorm(hidden)))

    def _until_dispatch(self, moe: Moe, stream: Stream, step: Pass) -> tuple[Tensor, MoeInput]:
        hidden = self._attend(stream, step)
        return hidden, moe.route(self.post_attention_layernorm(hidden))

    def _attend(self, stream: Stream, step: Pass) -> Tensor:
        hidden = stream.settled()
        return hidden + self.self_attn(self.input_layernorm(hidden), step.rotation, step.cache)


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

    def new_cache(self) -> LatentCache:
        """An empty KV cache for one sequence through `layers`."""
        return LatentCache(self.layers, self.config.cache_width, self.dtype, self.config.max_position_embeddings)

    async def forward(self, ids: Tensor, cache: LatentCache, routed_experts: RoutedExperts) -> Tensor:
        """Run new tokens through the whole model. ids: i64[T] -> normed hidden states dtype[T, H].

        T is 1 .. `protocol.limits.MAX_TOKENS_PER_FRAME`.

        Raises:
            InvalidRequest: T out of range, an id outside the vocabulary, or only a span of the layers is here.
            ContextLengthExceeded: the cache would hold more than the model's context.
            Whatever `routed_experts` raises.

        *Cancellation:* the cache is as before the call; the same tokens may be run again.
        """
        hidden = await self.embed(ids)
        hidden = await self.run_span(hidden, cache, routed_experts)
        return await self.finish(hidden)

    async def embed(self, ids: Tensor) -> Tensor:
        """ids: i64[T] -> dtype[T, H]."""
        if self._weights.embed_tokens is None:
            raise InvalidRequest(f"this trunk holds layers {_named(self.layers)}: the embedding is elsewhere")
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.config.vocab_size:
            raise InvalidRequest(f"token ids outside 0..{self.config.vocab_size - 1}")
        return F.embedding(ids, self._weights.embed_tokens).to(self.dtype)

    async def run_span(self, hidden: Tensor, cache: LatentCache, routed_experts: RoutedExperts) -> Tensor:
        """Run new tokens through this trunk's layers. dtype[T, H] -> dtype[T, H]; the cache grows by T."""
        num_new = len(hidden)
        if not 1 <= num_new <= MAX_TOKENS_PER_FRAME:
            raise InvalidRequest(f"{num_new} tokens in one pass, expected 1..{MAX_TOKENS_PER_FRAME}")
        step = Pass(self.rotation(cache.num_tokens, num_new), cache, routed_experts, self.worker)
        stream = Stream(hidden)
        for block in self._weights.blocks:
            stream = await block.forward(stream, step)
        settled = await self.worker.run(stream.settled)
        cache.commit(num_new)
        return settled

    def rotation(self, start: int, num_tokens: int) -> Rotation:
        """The rotation to positions start .. start + num_tokens - 1."""
        return self._rotary.at(torch.arange(start, start + num_tokens), self.dtype)

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


def _named(layers: range) -> str:
    return f"{layers.start}..{layers.stop - 1}"
