"""The demonstration model, as shipped in fp8, gives the logits, tokens and text of transformers.

Run: pytest tests/client/test_demo_model_oracle.py
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import DeepseekV3ForCausalLM, PreTrainedTokenizerFast

from shoal import simulations
from shoal.client.engine.generate import Engine, Generation
from shoal.client.engine.sampler import Sampling
from shoal.client.text.tokenizer import Tokenizer
from shoal.client.trunk.checkpoint import load_trunk
from shoal.client.trunk.local_experts import LocalExperts
from shoal.experts.reference_backend import ReferenceBackend
from shoal.experts.store import ModelStore
from shoal.experts.worker import InlineWorker
from shoal.protocol.messages import Rounding
from tests.checkpoints import dequantized_copy

MODEL = Path(next(iter(simulations.__path__))) / "demo_model" / "model"
NUM_TOKENS = 64
FP32_BOUND = 1e-5


@dataclass(frozen=True)
class Demo:
    """The model here and in transformers, which reads an fp32 copy."""

    engine: Engine
    tokenizer: Tokenizer
    theirs: DeepseekV3ForCausalLM
    their_tokenizer: PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    root = tmp_path_factory.mktemp("demo")
    dequantized_copy(MODEL, root / "copy")
    store, worker, tokenizer = ModelStore.open(MODEL, root / "cache"), InlineWorker(), Tokenizer.load(MODEL)
    experts = LocalExperts(store, ReferenceBackend(), Rounding.FP32, worker)
    engine = Engine(load_trunk(store, worker, torch.float32), experts, tokenizer)
    theirs = DeepseekV3ForCausalLM.from_pretrained(root / "copy", dtype=torch.float32, attn_implementation="eager")
    return Demo(engine, tokenizer, theirs.eval(), PreTrainedTokenizerFast.from_pretrained(MODEL))


MESSAGES = [{"role": "user", "content": "Tell me a story about a frog."}]
PROMPTS = ["Once upon a time", "Había una vez un niño", "Hapo zamani za kale", "🐟 <｜User｜>"]


def generate(demo: Demo, ids: list[int]) -> Generation:
    return asyncio.run(demo.engine.generate(ids, Sampling(max_tokens=NUM_TOKENS)))


def prompts(demo: Demo) -> list[list[int]]:
    return [demo.tokenizer.encode_chat(MESSAGES), *(demo.tokenizer.encode_prompt(text) for text in PROMPTS)]


def test_greedy_tokens_and_text_are_those_of_transformers(demo: Demo) -> None:
    for ids in prompts(demo):
        generation = generate(demo, ids)
        prompt = torch.tensor([ids])
        mask = torch.ones_like(prompt)  # else transformers takes the BOS for padding
        with torch.no_grad():
            theirs = demo.theirs.generate(prompt, attention_mask=mask, max_new_tokens=NUM_TOKENS, do_sample=False)
        answer = theirs[0, len(ids) :].tolist()
        assert list(generation.token_ids) == answer
        assert generation.text == demo.their_tokenizer.decode(answer, skip_special_tokens=True)


def test_logits_are_those_of_transformers(demo: Demo) -> None:
    async def ours(ids: torch.Tensor) -> torch.Tensor:
        trunk = demo.engine.trunk
        return await trunk.logits(await trunk.forward(ids, trunk.new_cache(), demo.engine.routed_experts))

    ids = torch.tensor(demo.tokenizer.encode_prompt("The little fish swam all the way to the other side of the lake."))
    with torch.no_grad():
        theirs = demo.theirs(ids[None]).logits[0]
    assert (asyncio.run(ours(ids)) - theirs).abs().max() <= FP32_BOUND


def test_prompts_have_the_ids_of_transformers(demo: Demo) -> None:
    template = demo.their_tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert demo.tokenizer.encode_chat(MESSAGES) == template
    for text in PROMPTS[:3]:
        assert demo.tokenizer.encode(text) == demo.their_tokenizer(text).input_ids
