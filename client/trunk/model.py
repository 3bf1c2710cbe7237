"""The trunk in data-flow order: embed -> blocks -> norm -> head.  (Signatures; the bodies follow.)"""

from torch import Tensor

from shoal.client.trunk.config import ModelConfig
from shoal.client.trunk.kv_cache import LatentCache
from shoal.client.trunk.moe import RoutedExperts


class Trunk:
    """The model less its routed experts, or a span of its layers. Stateless: the cache carries the sequence."""

    config: ModelConfig
    layers: range
    """The decoder layers that this trunk holds."""

    def new_cache(self) -> LatentCache:
        """An empty KV cache for one sequence through `layers`."""
        raise NotImplementedError

    async def forward(self, ids: Tensor, cache: LatentCache, routed_experts: RoutedExperts) -> Tensor:
        """Run new tokens through the whole model. ids: i64[T] -> normed hidden states dtype[T, H]."""
        raise NotImplementedError

    async def logits(self, hidden: Tensor) -> Tensor:
        """hidden: dtype[N, H], as `forward` returns it -> f32[N, V]. Ask only for the rows you need."""
        raise NotImplementedError
