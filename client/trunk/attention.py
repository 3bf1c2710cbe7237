"""Multi-head latent attention over the compressed cache (DeepSeek-V2, arXiv 2405.04434 §2.1).

Stands first in every layer. Keys and values are never expanded: queries are carried into the latent space instead
("absorbed", appendix C), so that all heads attend to the cache's own rows. There is one form for prefill and decode: a
256-token chunk of DeepSeek-V3 would save 11 % of attention's multiply-accumulates by expanding (20 % after 4,096
tokens), at 80 KiB per cached token and for a second form to keep equal. A pass may carry rows of several sequences:
projections take all rows together, so that weights are read once; only the attending itself goes sequence by sequence.
Knows nothing of experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.client.trunk.config import ModelConfig
from shoal.client.trunk.kv_cache import Rows
from shoal.client.trunk.layers import RmsNorm
from shoal.client.trunk.linear import HeadMaps, Linear
from shoal.client.trunk.rope import Rotation, softmax_scale
from shoal.protocol.ids import LayerId

MAX_SCORES = 2**26
"""Attention scores held at a time (256 MiB in fp32): a chunk's queries go in slices when the cache is long."""


@dataclass(frozen=True, slots=True)
class QueryWeights:
    """Hidden states to queries: through a narrow latent, or directly where `q_lora_rank` is null."""

    q_a_proj: Linear
    q_a_layernorm: RmsNorm
    q_b_proj: Linear

    def __call__(self, x: Tensor) -> Tensor:
        return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """One layer's attention, in data-flow order; names as in the checkpoint."""

    q_proj: Linear | QueryWeights
    kv_a_proj_with_mqa: Linear
    kv_a_layernorm: RmsNorm
    to_keys: HeadMaps
    """[heads, T, nope] -> [heads, T, rank], by the first rows of each head in `kv_b_proj`."""
    to_values: HeadMaps
    """[heads, T, rank] -> [heads, T, v], by its other rows."""
    o_proj: Linear


class Attention:
    """One layer's attention."""

    def __init__(self, layer: LayerId, config: ModelConfig, weights: AttentionWeights) -> None:
        self.layer = layer
        self._config = config
        self._weights = weights
        self._scale = softmax_scale(config)

    def __call__(self, x: Tensor, rotation: Rotation, rows: Sequence[Rows]) -> Tensor:
        """x: dtype[T, H], normed: the new tokens of each sequence in turn -> dtype[T, H]."""
        counts = [some.count for some in rows]
        latents = [
            # [heads, T of one sequence, rank]
            self._attend_rows(some, queries, some.cache.write(self.layer, new, some.start))
            for some, queries, new in zip(
                rows,
                self._queries(x, rotation).split_with_sizes(counts, dim=1),
                self._compress(x, rotation).split_with_sizes(counts),
                strict=True,
            )
        ]
        values = self._weights.to_values(torch.cat(latents, dim=1))  # [heads, T, v]
        return self._weights.o_proj(values.transpose(0, 1).flatten(1))

    def _compress(self, x: Tensor, rotation: Rotation) -> Tensor:
        """What is remembered of each token: the normed latent and the rotated shared key, dtype[T, W]."""
        latent, key = self._weights.kv_a_proj_with_mqa(x).split_with_sizes(
            [self._config.kv_lora_rank, self._config.qk_rope_head_dim], dim=-1
        )
        key = rotation.apply(key.unsqueeze(1)).squeeze(1)  # [T, rope]
        return torch.cat((self._weights.kv_a_layernorm(latent), key), dim=-1)

    def _queries(self, x: Tensor, rotation: Rotation) -> Tensor:
        """Queries in the cache's own coordinates, dtype[heads, T, W]."""
        q = self._weights.q_proj(x).view(len(x), self._config.num_attention_heads, self._config.qk_head_dim)
        nope, rope = q.split_with_sizes([self._config.qk_nope_head_dim, self._config.qk_rope_head_dim], dim=-1)
        absorbed = self._weights.to_keys(nope.transpose(0, 1))  # [heads, T, rank]
        return torch.cat((absorbed, rotation.apply(rope).transpose(0, 1)), dim=-1)

    def _attend_rows(self, some: Rows, queries: Tensor, rows: Tensor) -> Tensor:
        """`_attend`, or as many single calls of it as decoding the same tokens would make."""
        if not some.is_one_by_one:
            return self._attend(queries, rows)
        first = len(rows) - some.count + 1
        each = [self._attend(queries[:, i : i + 1], rows[: first + i]) for i in range(some.count)]
        return torch.cat(each, dim=1)

    def _attend(self, queries: Tensor, rows: Tensor) -> Tensor:
        """queries: [heads, T, W], the last T of the S tokens in rows: [S, W] -> latents [heads, T, rank]."""
        num_heads, num_queries, _ = queries.shape
        slice_len = max(1, MAX_SCORES // (num_heads * rows.shape[0]))
        if num_queries <= slice_len:
            return self._attend_slice(queries, rows)
        attended = []
        for start in range(0, num_queries, slice_len):
            some = queries[:, start : start + slice_len]
            num_later = num_queries - start - some.shape[1]
            attended.append(self._attend_slice(some, rows[: len(rows) - num_later]))
        return torch.cat(attended, dim=1)

    def _attend_slice(self, queries: Tensor, rows: Tensor) -> Tensor:
        num_heads, num_queries, _ = queries.shape
        scores = (queries.flatten(0, 1) @ rows.T).view(num_heads, num_queries, -1) * self._scale  # [heads, T, S]
        if num_queries > 1:
            is_future = scores.new_ones(scores.shape[1:], dtype=torch.bool).triu(len(rows) - num_queries + 1)
            scores = scores.masked_fill(is_future, float("-inf"))
        probabilities = scores.softmax(dim=-1, dtype=torch.float32).to(queries.dtype)
        latents = rows[:, : self._config.kv_lora_rank]  # [S, rank]
        return (probabilities.flatten(0, 1) @ latents).view(num_heads, num_queries, -1)
