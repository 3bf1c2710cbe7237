"""One MoE feed-forward: router, routed experts through THE SEAM to the swarm, shared expert meanwhile, and the sum.

Stands after attention in every layer but the first few. Knows `topk_idx` and `topk_weights`; knows no holder, no
channel and no expert weight: whoever implements `RoutedExperts` does.
"""

import asyncio
from abc import abstractmethod
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from shoal.client.trunk.layers import Mlp
from shoal.client.trunk.router import Router
from shoal.experts.worker import Worker
from shoal.protocol.ids import LayerId


class RoutedExperts(Protocol):
    """The routed experts of every layer, wherever they live: a swarm (`client/routing/dispatch.py`) or this process."""

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


class ExpertsHere(RoutedExperts):
    """Routed experts of this process: a layer is one job on the worker, and no thread waits for another within it.

    A base class and no protocol: every layer asks `isinstance`, which costs a protocol 13 µs and a class 0.2.
    """

    @abstractmethod
    def compute(self, layer: LayerId, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        """What `__call__` returns, computed by whoever calls. Runs on the worker."""


@dataclass(frozen=True, slots=True)
class MoeInput:
    """What attention leaves for the experts of a layer."""

    x: Tensor
    """dtype[T, H], normed."""
    topk_idx: Tensor
    """i64[T, K], ascending."""
    topk_weights: Tensor
    """f32[T, K]"""


@dataclass(frozen=True, slots=True)
class MoeOutput:
    """The two sums of a layer's experts; not added yet, so that the next job on the worker does it."""

    routed: Tensor
    """f32[T, H]"""
    shared: Tensor
    """dtype[T, H]"""

    def total(self) -> Tensor:
        """Their sum, in fp32 and then cast (DeepSeek-V3.2 `MoE.forward`): dtype[T, H]."""
        return (self.routed + self.shared.to(torch.float32)).to(self.shared.dtype)


class Moe:
    """One layer's experts as the trunk sees them: chooses, sends, computes the shared expert, waits."""

    def __init__(self, layer: LayerId, gate: Router, shared_experts: Mlp) -> None:
        self.layer = layer
        self._gate = gate
        self._shared_experts = shared_experts

    def route(self, x: Tensor) -> MoeInput:
        """x: dtype[T, H], normed -> what to dispatch. Runs on the worker."""
        routing = self._gate(x)
        return MoeInput(x, routing.topk_idx, routing.topk_weights)

    async def forward(self, step: MoeInput, routed_experts: RoutedExperts, worker: Worker) -> MoeOutput:
        """Dispatch first, then compute the shared expert while the answers travel."""
        routed, shared = await _together(
            routed_experts(self.layer, step.x, step.topk_idx, step.topk_weights),
            worker.run(self._shared_experts, step.x),
        )
        return MoeOutput(routed, shared)

    def compute(self, step: MoeInput, experts: ExpertsHere) -> MoeOutput:
        """`forward` without anybody to wait for. Runs on the worker."""
        routed = experts.compute(self.layer, step.x, step.topk_idx, step.topk_weights)
        return MoeOutput(routed, self._shared_experts(step.x))


First = TypeVar("First")
Second = TypeVar("Second")


async def _together(first: Coroutine[None, None, First], second: Coroutine[None, None, Second]) -> tuple[First, Second]:
    """Run both, `first` a step ahead. An error of one cancels the other and is raised as itself, not in a group."""
    try:
        async with asyncio.TaskGroup() as group:
            behind = group.create_task(second)
            result = await first
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return result, behind.result()
