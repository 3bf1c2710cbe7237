"""Multi-token prediction: one more layer that guesses the token after the next (DeepSeek-V3, arXiv 2412.19437 §2.2).

Stands beside the decode loop: from the trunk's state at token t and the token t+1 it drafts token t+2, which the trunk
then verifies together with its own next token. Its routed experts go through the same seam as all others. Embedding
and head are the trunk's own; the checkpoint's duplicates of them are not read. Knows no sampling and no acceptance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.client.trunk.kv_cache import LatentCache, Rows, commit
from shoal.client.trunk.layers import RmsNorm
from shoal.client.trunk.linear import Linear
from shoal.client.trunk.model import Block, Pass, Stream, Trunk
from shoal.client.trunk.moe import RoutedExperts
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.ids import LayerId


@dataclass(frozen=True, slots=True)
class MtpWeights:
    """The MTP layer's own tensors; names as in the checkpoint."""

    enorm: RmsNorm
    hnorm: RmsNorm
    eh_proj: Linear
    """[T, 2H] -> [T, H]: the embedding's half first."""
    block: Block
    norm: RmsNorm
    """`shared_head.norm`"""


class Mtp:
    """The MTP layer `layer` of a trunk that holds embedding and head."""

    def __init__(self, layer: LayerId, trunk: Trunk, weights: MtpWeights) -> None:
        self.layer = layer
        self._trunk = trunk
        self._weights = weights

    def new_cache(self) -> LatentCache:
        """An empty KV cache of the MTP layer for one sequence: its row i belongs to token i + 1."""
        config = self._trunk.config
        layers = range(self.layer, self.layer + 1)
        return LatentCache(layers, config.cache_width, self._trunk.dtype, config.max_position_embeddings)

    async def forward(
        self, hidden: Tensor, next_ids: Tensor, cache: LatentCache, routed_experts: RoutedExperts
    ) -> Tensor:
        """One pass over new tokens. Returns dtype[T, H], normed.

        hidden: dtype[T, H], as `Trunk.forward` returns it · next_ids: i64[T], the token after each. Row t of the
        result, through `Trunk.logits`, predicts the token after next_ids[t]. Every token of a sequence must pass once,
        in order, as it must through the trunk; after a rejected draft, truncate this cache too.

        Raises and *Cancellation:* as `Trunk.forward`.
        """
        return await self.forward_rows(hidden, next_ids, [Rows(len(hidden), cache)], routed_experts)

    async def forward_rows(
        self, hidden: Tensor, next_ids: Tensor, rows: Sequence[Rows], routed_experts: RoutedExperts
    ) -> Tensor:
        """`forward` for new tokens of several sequences; rows: whose they are, in turn, each sequence once."""
        if hidden.shape[:1] != next_ids.shape:
            raise InvalidRequest(f"{len(hidden)} hidden states and {len(next_ids)} next tokens")
        trunk = self._trunk
        embedded = await trunk.embed(next_ids)
        # a row's position is that of its next token
        rotation = trunk.rotation([(some.cache.num_tokens + 1, some.count) for some in rows])
        step = Pass(rotation, rows, routed_experts, trunk.worker)
        joined = await trunk.worker.run(self._join, embedded, hidden)
        stream = await self._weights.block.forward(Stream(joined), step)
        drafted = await trunk.worker.run(self._finish, stream)
        commit(rows)
        return drafted

    async def likeliest(self, drafted: Tensor) -> list[int]:
        """The likeliest token by each row of `forward`'s result, dtype[N, H]."""
        logits = await self._trunk.logits(drafted)
        return [int(token_id) for token_id in logits.argmax(dim=-1)]

    def _join(self, embedded: Tensor, hidden: Tensor) -> Tensor:
        return self._weights.eh_proj(torch.cat((self._weights.enorm(embedded), self._weights.hnorm(hidden)), dim=-1))

    def _finish(self, stream: Stream) -> Tensor:
        return self._weights.norm(stream.settled())
