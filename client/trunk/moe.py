"""One MoE feed-forward: router, routed experts through THE SEAM to the swarm, shared expert meanwhile, and the sum.

Stands after attention in every layer but the first few. Knows `topk_idx` and `topk_weights`; knows no holder, no
channel and no expert weight: whoever implements `RoutedExperts` does.
"""

from typing import Protocol

from torch import Tensor

from shoal.protocol.ids import LayerId


class RoutedExperts(Protocol):
    """The routed experts of every layer, wherever they live: a swarm (`client/dispatch.py`) or this process."""

    async def __call__(self, layer: LayerId, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        """Sum of each token's chosen experts, weighted, added in ascending expert id.

        x: f32|bf16[T, H], the trunk's dtype · topk_idx: i64[T, K], each row ascending and without duplicates ·
        topk_weights: f32[T, K], already normalized and scaled. Returns f32[T, H]. T is at most
        `protocol.limits.MAX_TOKENS_PER_FRAME`.

        The arguments are read-only: several callees may hold them at once.

        Raises:
            ShoalError: some expert could not be reached (`CoverageGap`, …); never a silently smaller sum.

        Cancellation: leaves nothing running here; what is on the wire is refused by its holder or thrown away.
        """
