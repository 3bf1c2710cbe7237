"""A node holds a checkpoint's experts in the format they were published in, and says truly what that takes.

Run: pytest tests/node/weights/test_loading.py
"""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.experts.choose_backend import KernelChoice, choose_backend
from shoal.experts.cpu_backend import CpuExpert
from shoal.experts.store import ModelStore
from shoal.experts.weight_formats import stored_bytes
from shoal.experts.worker import InlineWorker
from shoal.node.weights.loading import load
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import WeightFormat
from tests.checkpoints import SHAPES, Stored, write_checkpoint


@pytest.mark.parametrize(
    ("stored", "weight_format"),
    [
        (Stored.F32, WeightFormat.F32),
        (Stored.BF16, WeightFormat.BF16),
        (Stored.FP8, WeightFormat.FP8_BLOCK),
        (Stored.FP8_UE8M0, WeightFormat.FP8_BLOCK),
        (Stored.FP8_POWER_OF_TWO, WeightFormat.FP8_BLOCK),
    ],
)
def test_experts_stay_in_their_published_format_and_take_its_bytes(
    stored: Stored, weight_format: WeightFormat, tmp_path: Path
) -> None:
    shape = replace(SHAPES["wide_fp8"], hidden=256, inter=128, stored=stored)  # widths that no format pads
    write_checkpoint(tmp_path / "model", shape, seed=1)
    backend = choose_backend(KernelChoice.AUTO, 1)
    holding = {LayerId(1): tuple(map(ExpertId, range(3))), LayerId(2): (ExpertId(7),)}
    with ModelStore.open(tmp_path / "model", tmp_path / "cache") as store:
        held = asyncio.run(load(store, backend, InlineWorker(), holding, lambda *_: None))
        spec = store.spec.expert
    packed = [expert for experts in held.experts.values() for expert in experts.values()]
    assert held.weight_format is weight_format
    assert all(isinstance(expert, CpuExpert) for expert in packed)
    assert [expert.resident_bytes for expert in packed] == 4 * [stored_bytes(spec, weight_format)]
    assert backend.resident_bytes(spec, weight_format) == stored_bytes(spec, weight_format)
