"""A trunk that runs from packed weights is the trunk of the numbers that those weights stand for.

Run: pytest tests/client/trunk/test_packed_trunk.py
"""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shoal.client.engine.generate import Engine
from shoal.client.engine.sampler import Sampling
from shoal.client.trunk.checkpoint import load_mtp, load_trunk
from shoal.client.trunk.head_maps import HeadSplit
from shoal.client.trunk.linear import DenseHeadMaps, HeadMaps, Linear
from shoal.client.trunk.linear_maker import DenseMaker, LinearMaker, PackedMaker, TrunkFormat, linear_maker
from shoal.client.trunk.local_experts import LocalExperts
from shoal.client.trunk.model import Trunk
from shoal.experts.reference_backend import ReferenceBackend
from shoal.experts.store import ModelStore
from shoal.experts.stored_weight import STRIP_ROWS, StoredWeight
from shoal.experts.weight_formats import STORED
from shoal.experts.worker import InlineWorker
from shoal.kernels import cpu
from shoal.kernels.cpu import CpuKernels
from shoal.kernels.formats import dequantize_fp8_block, quantize_fp8_block
from shoal.protocol.errors import CheckpointError, InvalidRequest
from shoal.protocol.messages import Rounding, WeightFormat
from tests.checkpoints import SHAPES, CheckpointShape, Stored, write_checkpoint

PACKED = [trunk_format for trunk_format in TrunkFormat if trunk_format is not TrunkFormat.DENSE]
QUANTIZED = [trunk_format for trunk_format in PACKED if trunk_format is not TrunkFormat.AS_PUBLISHED]

FP32_BOUND = 1e-5
"""Largest difference of a logit, as between the dense trunk and transformers."""

BF16_BOUND = 0.02
"""Relative L2 of logits, median over tokens, as between two bf16 runs in `test_trunk_oracle.py`."""

MORE_SHAPES = {
    "heads_of_128_fp8": CheckpointShape(
        qk_nope_head_dim=128, v_head_dim=128, kv_lora_rank=160, stored=Stored.FP8_POWER_OF_TWO
    ),
    "heads_that_cut_blocks_fp8": CheckpointShape(qk_nope_head_dim=56, v_head_dim=104, num_heads=3, stored=Stored.FP8),
}
ALL_SHAPES = {**SHAPES, **MORE_SHAPES}


@dataclass(frozen=True)
class DequantizedMaker(LinearMaker):
    """Dense maps of the numbers that `format` stores: what a packed trunk must agree with."""

    dtype: torch.dtype
    format: TrunkFormat

    def linear(self, weight: StoredWeight, bias: Tensor | None = None) -> Linear:
        stored = weight.converted(self.format.stored_as(weight.format))
        plain = StoredWeight(weight.name, weight.file, WeightFormat.F32, stored.values())
        return DenseMaker(self.dtype).linear(plain, bias)

    def head(self, weight: StoredWeight) -> Linear:
        return DenseMaker(self.dtype).linear(weight)

    def router(self, weight: StoredWeight) -> Linear:
        return DenseMaker(self.dtype).router(weight)

    def embedding(self, weight: StoredWeight) -> Tensor:
        return weight.values(self.dtype)

    def head_maps(self, kv_b: StoredWeight, split: HeadSplit) -> tuple[HeadMaps, HeadMaps]:
        heads = kv_b.values().view(split.num_heads, split.nope + split.v, split.rank)
        wanted = self.format.stored_as(kv_b.format)
        parts = heads[:, : split.nope].mT, heads[:, split.nope :]
        to_keys, to_values = parts if wanted is kv_b.format else (_stored_by_head(part, wanted) for part in parts)
        return self._dense(to_keys), self._dense(to_values)

    def _dense(self, part: Tensor) -> HeadMaps:
        return DenseHeadMaps(part.mT.to(self.dtype).contiguous())


def _stored_by_head(maps: Tensor, wanted: WeightFormat) -> Tensor:
    weights = [StoredWeight("kv_b", "file", WeightFormat.F32, each.contiguous()) for each in maps]
    return torch.stack([weight.converted(wanted).values() for weight in weights])


def logits_of(store: ModelStore, dtype: torch.dtype, maker: LinearMaker, ids: Tensor, chunk: int) -> Tensor:
    """Of a prompt in chunks."""
    trunk = load_trunk(store, InlineWorker(), dtype, maker=maker)
    rounding = Rounding.FP32 if dtype is torch.float32 else Rounding.BF16
    experts = LocalExperts(store, ReferenceBackend(), rounding, InlineWorker())
    return asyncio.run(run(trunk, experts, ids, chunk))


async def run(trunk: Trunk, experts: LocalExperts, ids: Tensor, chunk: int) -> Tensor:
    cache = trunk.new_cache()
    return torch.cat([await trunk.logits(await trunk.forward(some, cache, experts)) for some in ids.split(chunk)])


def open_model(root: Path, shape: CheckpointShape) -> ModelStore:
    write_checkpoint(root / "model", shape, seed=1)
    return ModelStore.open(root / "model", root / "cache")


def packed(trunk_format: TrunkFormat) -> LinearMaker:
    return PackedMaker(CpuKernels(1), trunk_format)


IDS = torch.randint(0, 96, (24,), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("chunk", [1, 24])
@pytest.mark.parametrize("shape", ALL_SHAPES)
def test_as_published_in_fp32_gives_the_logits_of_the_dense_trunk(shape: str, chunk: int, tmp_path: Path) -> None:
    store = open_model(tmp_path, ALL_SHAPES[shape])
    ours = logits_of(store, torch.float32, packed(TrunkFormat.AS_PUBLISHED), IDS, chunk)
    dense = logits_of(store, torch.float32, DenseMaker(torch.float32), IDS, chunk)
    assert (ours - dense).abs().max() <= FP32_BOUND


@pytest.mark.parametrize("shape", ["wide_fp8", "two_dense_two_shared_bf16", "heads_of_128_fp8"])
def test_as_published_gives_the_greedy_tokens_of_the_dense_trunk(shape: str, tmp_path: Path) -> None:
    store = open_model(tmp_path, ALL_SHAPES[shape])
    experts = LocalExperts(store, ReferenceBackend(), Rounding.FP32, InlineWorker())
    answers = []
    for maker in (packed(TrunkFormat.AS_PUBLISHED), DenseMaker(torch.float32)):
        engine = Engine(load_trunk(store, InlineWorker(), torch.float32, maker=maker), experts)
        answers.append(asyncio.run(engine.generate(IDS.tolist(), Sampling(max_tokens=48, ignore_eos=True))).token_ids)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("trunk_format", QUANTIZED)
@pytest.mark.parametrize("shape", ["wide_fp8", "heads_of_128_fp8", "two_dense_two_shared_bf16"])
def test_a_quantized_trunk_is_the_trunk_of_its_dequantized_weights(
    shape: str, trunk_format: TrunkFormat, tmp_path: Path
) -> None:
    store = open_model(tmp_path, ALL_SHAPES[shape])
    ours = logits_of(store, torch.float32, packed(trunk_format), IDS, 24)
    dense = logits_of(store, torch.float32, DequantizedMaker(torch.float32, trunk_format), IDS, 24)
    assert (ours - dense).abs().max() <= FP32_BOUND


@pytest.mark.parametrize("trunk_format", [TrunkFormat.AS_PUBLISHED, TrunkFormat.INT8_G128, TrunkFormat.INT4_G32])
def test_in_bf16_a_packed_trunk_differs_no_more_than_two_bf16_runs_do(
    trunk_format: TrunkFormat, tmp_path: Path
) -> None:
    store = open_model(tmp_path, ALL_SHAPES["wide_fp8"])
    ours = logits_of(store, torch.bfloat16, packed(trunk_format), IDS, 24)
    dense = logits_of(store, torch.bfloat16, DequantizedMaker(torch.bfloat16, trunk_format), IDS, 24)
    assert float(((ours - dense).norm(dim=-1) / dense.norm(dim=-1)).median()) <= BF16_BOUND


def test_a_packed_mtp_layer_drafts_what_the_dense_one_drafts(tmp_path: Path) -> None:
    store = open_model(tmp_path, SHAPES["ragged_fp8_mtp_sharded"])
    experts = LocalExperts(store, ReferenceBackend(), Rounding.FP32, InlineWorker())

    async def states(maker: LinearMaker) -> Tensor:
        trunk = load_trunk(store, InlineWorker(), torch.float32, maker=maker)
        mtp = load_mtp(store, trunk, maker)
        assert mtp is not None
        hidden = await trunk.forward(IDS, trunk.new_cache(), experts)
        return await mtp.forward(hidden[:-1], IDS[1:], mtp.new_cache(), experts)

    ours, dense = (asyncio.run(states(m)) for m in (packed(TrunkFormat.AS_PUBLISHED), DenseMaker(torch.float32)))
    assert (ours - dense).abs().max() <= FP32_BOUND


def test_a_tied_head_and_attention_biases_work_packed_too(tmp_path: Path) -> None:
    weight = StoredWeight("w", "file", WeightFormat.BF16, torch.randn(70, 24).bfloat16())
    x, bias = torch.randn(5, 24), torch.randn(70).bfloat16()
    ours, dense = (
        maker.linear(weight, bias)(x) for maker in (packed(TrunkFormat.AS_PUBLISHED), DenseMaker(torch.float32))
    )
    torch.testing.assert_close(ours, dense, atol=1e-5, rtol=1e-5)
    rounded = packed(TrunkFormat.AS_PUBLISHED).linear(weight, bias)(x.bfloat16())
    torch.testing.assert_close(rounded, (x.bfloat16().float() @ weight.data.float().T + bias.float()).bfloat16())


def test_resident_bytes_are_those_of_the_stored_formats(tmp_path: Path) -> None:
    shape = replace(
        SHAPES["wide_fp8"], qk_nope_head_dim=128, v_head_dim=128, kv_lora_rank=256, q_lora_rank=128, vocab_size=64
    )
    store = open_model(tmp_path, shape)
    held = {
        trunk_format: load_trunk(
            store, InlineWorker(), torch.bfloat16, maker=linear_maker(trunk_format, torch.bfloat16, 1)
        ).resident_bytes
        for trunk_format in TrunkFormat
    }
    tensors = [store.trunk_tensor(name) for name in store.manifest.trunk]
    as_bf16 = sum(2 * tensor.numel() for tensor in tensors)
    stored = sum(tensor.nbytes for tensor in tensors)
    assert stored <= held[TrunkFormat.AS_PUBLISHED] <= 1.1 * stored  # widths of 24 and the like are padded to 64
    assert held[TrunkFormat.DENSE] == pytest.approx(as_bf16, rel=0.01)
    assert held[TrunkFormat.INT4_G128] < held[TrunkFormat.INT4_G32] < held[TrunkFormat.INT8_G128]


@pytest.mark.parametrize("wanted", WeightFormat)
@pytest.mark.parametrize("published", [WeightFormat.FP8_BLOCK, WeightFormat.BF16, WeightFormat.F32])
def test_converting_in_strips_gives_the_bytes_of_converting_at_once(
    published: WeightFormat, wanted: WeightFormat
) -> None:
    values = torch.randn(STRIP_ROWS + 130, 64, generator=torch.Generator().manual_seed(6))
    weight = StoredWeight("w", "file", published, *STORED[published].quantize(values))
    converted = weight.converted(wanted)
    if wanted is published:
        assert converted is weight
        return
    data, scale = STORED[wanted].quantize(weight.values())
    assert torch.equal(converted.data.view(torch.uint8), data.view(torch.uint8))
    assert (converted.scale is None) is (scale is None)
    if converted.scale is not None and scale is not None:
        assert torch.equal(converted.scale.float(), scale.float())


def test_fp8_maps_of_heads_keep_every_number() -> None:
    split = HeadSplit(num_heads=4, nope=32, v=64, rank=96)  # a head's part lies in one block each
    data, scale = quantize_fp8_block(torch.randn(4 * 96, 96, generator=torch.Generator().manual_seed(7)))
    kv_b = StoredWeight("kv_b", "file", WeightFormat.FP8_BLOCK, data, scale)
    to_keys, to_values = packed(TrunkFormat.AS_PUBLISHED).head_maps(kv_b, split)
    heads = dequantize_fp8_block(data, scale).view(4, 96, 96)
    assert torch.equal(to_keys(torch.eye(32).expand(4, -1, -1)), heads[:, :32])
    assert torch.equal(to_values(torch.eye(96).expand(4, -1, -1)).mT, heads[:, 32:])


def test_without_the_extension_a_packed_trunk_is_refused_and_a_dense_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shoal.client.trunk.linear_maker.is_available", lambda: False)
    for trunk_format in PACKED:
        with pytest.raises(InvalidRequest, match=r"C\+\+ kernels"):
            linear_maker(trunk_format, torch.float32, 1)
    assert linear_maker(TrunkFormat.DENSE, torch.float32, 1) == DenseMaker(torch.float32)


@pytest.mark.parametrize("trunk_format", PACKED)
def test_a_weight_that_is_not_finite_is_refused_by_name(trunk_format: TrunkFormat, tmp_path: Path) -> None:
    data, scale = quantize_fp8_block(torch.randn(64, 128))
    data.view(torch.uint8)[3, 5] = 0x7F
    weight = StoredWeight("a.name", "a file", WeightFormat.FP8_BLOCK, data, scale)
    with pytest.raises(CheckpointError) as caught:
        packed(trunk_format).linear(weight)
    assert caught.value.tensor == "a.name"


def test_every_weight_format_of_the_wire_can_hold_a_trunk() -> None:
    named = {trunk_format.stored_as(WeightFormat.F32) for trunk_format in PACKED}
    assert named == set(WeightFormat)
    assert {int(weight_format) for weight_format in WeightFormat} == {int(each) for each in cpu.Format}
