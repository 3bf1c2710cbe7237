"""A second start maps what the first one packed: the same bits, no weight read; and never beyond the owner's limit."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shoal.experts.backend import PackedExpert
from shoal.experts.cpu_backend import CpuBackend
from shoal.experts.packed_cache import PACKED, PackedCache
from shoal.experts.reference_backend import ReferenceBackend
from shoal.experts.store import ModelStore
from shoal.experts.worker import InlineWorker
from shoal.kernels import cpu
from shoal.kernels.cpu import CpuKernels
from shoal.node.daemon import no_progress
from shoal.node.holdings.assignment import parse_holding
from shoal.node.host import check_disk
from shoal.node.serving.server import Held
from shoal.node.settings import GuestSettings, NodeSettings
from shoal.node.weights.loading import load
from shoal.node.weights.packing import (
    FOLDER,
    LOGS_BYTES,
    keep_all,
    keep_packed,
    key_of,
    load_one,
    open_cache,
    used_bytes,
)
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import Rounding
from tests.checkpoints import CheckpointShape, Stored, write_checkpoint

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason="needs the C++ kernels")

SHAPE = CheckpointShape(
    hidden=512, inter=704, dense_inter=128, num_layers=2, num_experts=4, num_groups=2, topk_groups=1, top_k=2,
    stored=Stored.FP8,
)  # fmt: skip
EXPERT_BYTES = 3 * 512 * 704
LAYER = LayerId(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("packing") / "model"
    write_checkpoint(directory, SHAPE, seed=5)
    return directory


@pytest.fixture
def settings(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeSettings:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return NodeSettings(model, cache_dir=tmp_path / "cache", guest=GuestSettings(disk_bytes=10**9))


@contextmanager
def started(settings: NodeSettings) -> Iterator[tuple[ModelStore, PackedCache, Held]]:
    """What a node does of it: open, load."""
    backend = CpuBackend(CpuKernels(1))
    assert settings.cache_dir is not None
    with ModelStore.open(settings.model, settings.cache_dir) as store:
        cache = open_cache(settings, store, backend)
        assert cache is not None
        holding = parse_holding("all", store.spec)
        yield store, cache, asyncio.run(load(store, backend, InlineWorker(), holding, no_progress, cache))


def files(cache: PackedCache) -> list[Path]:
    return sorted((cache.folder / PACKED).iterdir())


def answer(expert: PackedExpert) -> torch.Tensor:
    x = torch.randn((2, SHAPE.hidden), generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    return CpuBackend(CpuKernels(1)).run([expert], x, torch.arange(2), [0, 2], torch.ones(2), Rounding.BF16)


def test_a_second_start_reads_no_weight_and_answers_with_the_same_bits(settings: NodeSettings) -> None:
    with started(settings) as (store, cache, held):
        assert store.bytes_read > 4 * EXPERT_BYTES
        assert asyncio.run(keep_all(cache, store, held))
        first = {expert: answer(packed) for expert, packed in held.experts[LAYER].items()}
    with started(settings) as (store, _, held):
        before = store.bytes_read
        assert before < EXPERT_BYTES, "headers only"
        for expert, packed in held.experts[LAYER].items():
            assert torch.equal(answer(packed), first[expert])
        assert store.bytes_read == before


def test_what_is_damaged_in_the_cache_is_packed_again_and_logged(
    settings: NodeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    with started(settings) as (store, cache, held):
        assert asyncio.run(keep_all(cache, store, held))
        expected = answer(held.experts[LAYER][ExpertId(2)])
        path = cache.folder / PACKED / key_of(store, LAYER, ExpertId(2)).name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with caplog.at_level(logging.WARNING), started(settings) as (store, cache, held):
        assert torch.equal(answer(held.experts[LAYER][ExpertId(2)]), expected)
        assert not path.exists()
        assert asyncio.run(keep_all(cache, store, held))
        assert path.read_bytes() != bytes(data)
    assert "expert 1:2 was damaged in the cache of packed experts" in caplog.text


def test_the_owners_limit_is_kept_and_the_node_says_that_it_keeps_no_more(
    settings: NodeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    limit = used_bytes(settings) + LOGS_BYTES + 3 * EXPERT_BYTES
    tight = replace(settings, guest=GuestSettings(disk_bytes=limit))
    with caplog.at_level(logging.INFO), started(tight) as (store, cache, held):
        asyncio.run(keep_packed(cache, store, held))
        assert 1 <= len(files(cache)) <= 3
    assert used_bytes(settings) <= limit
    assert "packed experts are not kept for the next start" in caplog.text


def test_a_lower_limit_lets_packed_experts_go_before_it_stops_a_start(settings: NodeSettings) -> None:
    with started(settings) as (store, cache, held):
        assert asyncio.run(keep_all(cache, store, held))
    lower = replace(settings, guest=GuestSettings(disk_bytes=LOGS_BYTES + 2 * EXPERT_BYTES))
    check_disk(lower)
    assert len(files(cache)) <= 2
    assert used_bytes(lower) <= LOGS_BYTES + 2 * EXPERT_BYTES
    with pytest.raises(InvalidRequest, match="the limit is"):
        check_disk(replace(settings, guest=GuestSettings(disk_bytes=10)))
    assert files(cache) == []


def test_small_experts_and_other_back_ends_have_no_cache(settings: NodeSettings, tmp_path: Path) -> None:
    small = tmp_path / "small"
    write_checkpoint(small, replace(SHAPE, hidden=128, inter=64), seed=5)
    with ModelStore.open(small, tmp_path / "cache") as store:
        assert open_cache(settings, store, CpuBackend(CpuKernels(1))) is None
    with ModelStore.open(settings.model, tmp_path / "cache") as store:
        assert open_cache(settings, store, ReferenceBackend()) is None
        packed = load_one(store, ReferenceBackend(), None, LAYER, ExpertId(0))
        assert packed.spec == store.spec.expert
    assert not (tmp_path / "cache" / FOLDER).exists()


def test_a_cache_that_can_not_be_made_is_said_and_nothing_is_lost(
    settings: NodeSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / FOLDER).write_text("in the way")
    with ModelStore.open(settings.model, tmp_path / "cache") as store, caplog.at_level(logging.INFO):
        assert open_cache(settings, store, CpuBackend(CpuKernels(1))) is None
    assert "packed experts are not kept" in caplog.text
