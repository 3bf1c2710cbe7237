"""Attention over a long cache goes in slices and gives the same.

Run: pytest tests/client/trunk/test_attention.py
"""

import asyncio
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shoal.client.trunk import attention
from shoal.client.trunk.checkpoint import load_trunk
from shoal.client.trunk.local_experts import LocalExperts
from shoal.experts.reference_backend import ReferenceBackend
from shoal.experts.store import ModelStore
from shoal.experts.worker import InlineWorker
from shoal.protocol.messages import Rounding
from tests.checkpoints import SHAPES, write_checkpoint

IDS = torch.arange(60) % SHAPES["plain"].vocab_size


@pytest.mark.parametrize("max_scores", [1, 500, 3000])
def test_slices_of_queries_give_what_all_at_once_give(
    max_scores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "model", SHAPES["plain"], seed=1)
    store, worker = ModelStore.open(tmp_path / "model", tmp_path / "cache"), InlineWorker()
    trunk = load_trunk(store, worker, torch.float32)
    experts = LocalExperts(store, ReferenceBackend(), Rounding.FP32, worker)

    async def run() -> Tensor:
        cache = trunk.new_cache()
        await trunk.forward(IDS[:20], cache, experts)
        return await trunk.forward(IDS[20:], cache, experts)

    at_once = asyncio.run(run())
    monkeypatch.setattr(attention, "MAX_SCORES", max_scores)
    torch.testing.assert_close(asyncio.run(run()), at_once, rtol=0, atol=5e-6)
