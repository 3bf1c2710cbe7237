"""The trunk gives what transformers gives, on random checkpoints of every shape that matters.

Run: pytest tests/client/trunk/test_trunk_oracle.py
"""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV3ForCausalLM
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel

from shoal.client.engine.generate import Engine
from shoal.client.engine.sampler import Sampling
from shoal.client.trunk.checkpoint import load_mtp, load_trunk
from shoal.client.trunk.kv_cache import Rows
from shoal.client.trunk.local_experts import LocalExperts
from shoal.client.trunk.model import Trunk
from shoal.experts.reference_backend import ReferenceBackend
from shoal.experts.store import ModelStore
from shoal.experts.worker import InlineWorker
from shoal.protocol.messages import Rounding
from tests.checkpoints import SHAPES, CheckpointShape, Stored, dequantized_copy, write_checkpoint

PREFILL_TOKENS = 40
DECODE_STEPS = 32
FP32_BOUND = 1e-5
"""Largest difference of a logit, where logits have a standard deviation near 1 (DESIGN §7)."""

BF16_BOUND = 0.02
"""Relative L2 between the logits of two bf16 runs, median over tokens (measured 0.012-0.013; to fp32 0.011).

The median, because rounding flips a route here and there: then the token has other experts and differs by 0.3 to 0.8.
"""

ROUNDINGS = {torch.float32: Rounding.FP32, torch.bfloat16: Rounding.BF16}

MORE_SHAPES = {
    "latents_wider_than_128_fp8": CheckpointShape(
        kv_lora_rank=144, qk_rope_head_dim=16, q_lora_rank=136, has_yarn=True, stored=Stored.FP8_POWER_OF_TWO
    ),
    "all_groups_kept": replace(SHAPES["plain"], num_groups=2, topk_groups=2),
}
ALL_SHAPES = {**SHAPES, **MORE_SHAPES}


@dataclass(frozen=True)
class Pair:
    """The same weights in transformers and in our trunk."""

    theirs: DeepseekV3ForCausalLM
    trunk: Trunk
    experts: LocalExperts

    def their_logits(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            return self.theirs(ids[None]).logits[0].float()

    async def our_logits(self, ids: Tensor, chunk: int) -> Tensor:
        cache = self.trunk.new_cache()
        rows = [
            await self.trunk.logits(await self.trunk.forward(some, cache, self.experts)) for some in ids.split(chunk)
        ]
        return torch.cat(rows)


def open_pair(directory: Path, cache_dir: Path, dtype: torch.dtype) -> Pair:
    store, worker = ModelStore.open(directory, cache_dir), InlineWorker()
    theirs = DeepseekV3ForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="eager")
    experts = LocalExperts(store, ReferenceBackend(), ROUNDINGS[dtype], worker)
    return Pair(theirs.eval(), load_trunk(store, worker, dtype), experts)


@pytest.fixture(scope="module", params=list(ALL_SHAPES))
def fp32_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """transformers reads an fp32 copy of what ours reads as published: it cannot run fp8 weights in fp32."""
    root = tmp_path_factory.mktemp(request.param)
    write_checkpoint(root / "published", ALL_SHAPES[request.param], seed=1)
    dequantized_copy(root / "published", root / "copy")
    pair = open_pair(root / "copy", root / "cache", torch.float32)
    store, worker = ModelStore.open(root / "published", root / "cache"), InlineWorker()
    experts = LocalExperts(store, ReferenceBackend(), Rounding.FP32, worker)
    return replace(pair, trunk=load_trunk(store, worker, torch.float32), experts=experts)


def random_ids(pair: Pair, count: int, seed: int) -> Tensor:
    return torch.randint(0, pair.trunk.config.vocab_size, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunk", [1, 7, PREFILL_TOKENS])
def test_prefill_gives_the_logits_of_transformers_however_it_is_chunked(fp32_pair: Pair, chunk: int) -> None:
    ids = random_ids(fp32_pair, PREFILL_TOKENS, seed=2)
    ours = asyncio.run(fp32_pair.our_logits(ids, chunk))
    assert (ours - fp32_pair.their_logits(ids)).abs().max() <= FP32_BOUND


def test_decoding_gives_the_logits_of_transformers_at_every_step(fp32_pair: Pair) -> None:
    async def decode() -> list[Tensor]:
        cache, rows, ids = fp32_pair.trunk.new_cache(), [], random_ids(fp32_pair, PREFILL_TOKENS, seed=3)
        for _ in range(DECODE_STEPS):
            hidden = await fp32_pair.trunk.forward(ids, cache, fp32_pair.experts)
            rows.append((await fp32_pair.trunk.logits(hidden[-1:]))[0])
            ids = rows[-1].argmax().view(1)
        return rows

    rows = asyncio.run(decode())
    answer = torch.stack(rows).argmax(dim=-1)
    ids = torch.cat((random_ids(fp32_pair, PREFILL_TOKENS, seed=3), answer[:-1]))
    theirs = fp32_pair.their_logits(ids)[PREFILL_TOKENS - 1 :]
    assert (torch.stack(rows) - theirs).abs().max() <= FP32_BOUND


def test_greedy_tokens_are_those_of_transformers(fp32_pair: Pair) -> None:
    ids = random_ids(fp32_pair, PREFILL_TOKENS, seed=4)
    engine = Engine(fp32_pair.trunk, fp32_pair.experts)
    ours = asyncio.run(engine.generate(ids.tolist(), Sampling(max_tokens=DECODE_STEPS, ignore_eos=True)))
    theirs = fp32_pair.theirs.generate(
        ids[None],
        attention_mask=torch.ones(1, PREFILL_TOKENS, dtype=torch.long),
        max_new_tokens=DECODE_STEPS,
        min_new_tokens=DECODE_STEPS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert list(ours.token_ids) == theirs[0, PREFILL_TOKENS:].tolist()


def test_scores_of_a_prompt_are_the_log_softmax_of_transformers(fp32_pair: Pair) -> None:
    ids = random_ids(fp32_pair, 100, seed=12)
    scores = asyncio.run(Engine(fp32_pair.trunk, fp32_pair.experts).score(ids.tolist(), top_logprobs=3))
    theirs = fp32_pair.their_logits(ids)[:-1].log_softmax(dim=-1)
    assert [score.token_id for score in scores] == ids.tolist()
    assert (scores[0].logprob, scores[0].top_logprobs) == (None, ())
    for score, row in zip(scores[1:], theirs, strict=True):
        assert score.logprob is not None
        assert abs(score.logprob - float(row[score.token_id])) <= 2 * FP32_BOUND
        for (_, logprob), their_logprob in zip(score.top_logprobs, row.topk(3).values.tolist(), strict=True):
            assert abs(logprob - their_logprob) <= 2 * FP32_BOUND


@pytest.mark.parametrize("name", ["two_dense_two_shared_bf16", "wide_fp8", "ragged_fp8_mtp_sharded"])
def test_bf16_stays_near_transformers_in_bf16_and_no_further_from_fp32_than_that(name: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "published", ALL_SHAPES[name], seed=5)
    dequantized_copy(tmp_path / "published", tmp_path / "copy")
    exact = open_pair(tmp_path / "copy", tmp_path / "cache", torch.float32)
    rounded = open_pair(tmp_path / "copy", tmp_path / "cache", torch.bfloat16)
    ids = random_ids(exact, PREFILL_TOKENS, seed=6)
    ours, theirs, fp32 = asyncio.run(rounded.our_logits(ids, 16)), rounded.their_logits(ids), exact.their_logits(ids)
    assert median_error(ours, theirs) <= BF16_BOUND
    assert median_error(ours, fp32) <= 1.25 * median_error(theirs, fp32)


def median_error(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm(dim=-1) / b.norm(dim=-1)).median())


@pytest.mark.parametrize("cuts", [[19], [7, 8, 19]])
def test_mtp_gives_the_states_of_transformers_and_takes_them_in_pieces(cuts: list[int], tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", ALL_SHAPES["ragged_fp8_mtp_sharded"], seed=8)
    dequantized_copy(tmp_path / "model", tmp_path / "copy")
    pair = open_pair(tmp_path / "copy", tmp_path / "cache", torch.float32)
    mtp = load_mtp(ModelStore.open(tmp_path / "copy", tmp_path / "cache"), pair.trunk)
    assert mtp is not None
    ids = random_ids(pair, 20, seed=9)

    async def ours() -> Tensor:
        hidden = await pair.trunk.forward(ids, pair.trunk.new_cache(), pair.experts)
        cache, begin, rows = mtp.new_cache(), 0, []
        for end in cuts:
            rows.append(await mtp.forward(hidden[begin:end], ids[begin + 1 : end + 1], cache, pair.experts))
            begin = end
        return torch.cat(rows)

    assert (asyncio.run(ours()) - their_mtp_states(pair.theirs, ids)).abs().max() <= FP32_BOUND


def their_mtp_states(model: DeepseekV3ForCausalLM, ids: Tensor) -> Tensor:
    model._keys_to_ignore_on_load_unexpected = [
        rf"model\.layers\.{model.config.num_hidden_layers}\..*"
    ]  # its MTP layer
    mtp = MtpModel.from_pretrained(model).eval()
    cache = MtpCache(config=model.config.get_mtp_config())
    positions = torch.arange(1, len(ids))[None]
    with torch.no_grad():
        hidden = model.model(ids[None]).last_hidden_state[:, :-1]
        return mtp.forward_layer(0, hidden, positions, cache, input_ids=ids[None, 1:])[0]


def test_tokens_after_a_rejected_draft_are_as_if_it_had_never_been(fp32_pair: Pair) -> None:
    ids, drafted = random_ids(fp32_pair, PREFILL_TOKENS, seed=10), random_ids(fp32_pair, 3, seed=11)

    async def run(trunk: Trunk) -> tuple[Tensor, Tensor]:
        cache = trunk.new_cache()
        await trunk.forward(ids[:30], cache, fp32_pair.experts)
        await trunk.forward(drafted, cache, fp32_pair.experts)
        cache.truncate(30)
        return await trunk.forward(ids[30:], cache, fp32_pair.experts), await straight_through(trunk)

    async def straight_through(trunk: Trunk) -> Tensor:
        cache = trunk.new_cache()
        await trunk.forward(ids[:30], cache, fp32_pair.experts)
        return await trunk.forward(ids[30:], cache, fp32_pair.experts)

    after, without = asyncio.run(run(fp32_pair.trunk))
    assert torch.equal(after, without)


def test_a_span_of_layers_does_its_part_of_the_whole(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", ALL_SHAPES["eight_groups_yarn_sharded"], seed=7)
    store, worker = ModelStore.open(tmp_path / "model", tmp_path / "cache"), InlineWorker()
    whole, first, last = (
        load_trunk(store, worker, torch.float32, layers) for layers in (range(3), range(1), range(1, 3))
    )
    experts = LocalExperts(store, ReferenceBackend(), Rounding.FP32, worker)

    async def both(ids: Tensor) -> tuple[Tensor, Tensor]:
        hidden = await first.run_span(await first.embed(ids), [Rows(len(ids), first.new_cache())], experts)
        hidden = await last.finish(await last.run_span(hidden, [Rows(len(ids), last.new_cache())], experts))
        return hidden, await whole.forward(ids, whole.new_cache(), experts)

    in_parts, at_once = asyncio.run(both(torch.arange(20)))
    assert torch.equal(in_parts, at_once)
