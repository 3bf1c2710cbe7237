"""The shipped checkpoint says the same in transformers as in the network that trained it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from shoal.simulations.demo_model.evaluate import MODEL_DIR, generate
from shoal.simulations.demo_model.export import load_network, unstacked
from shoal.simulations.demo_model.network import Network
from shoal.simulations.demo_model.prompts import as_chat

transformers = pytest.importorskip("transformers", reason="needs transformers, the oracle")

LOGIT_BOUND = 1e-4
"""fp32, different summation orders, logits of standard deviation 2.8; 1.6e-5 was measured over 700 positions."""
NEW_TOKENS = 32


@pytest.fixture(scope="module")
def network() -> Network:
    return load_network(MODEL_DIR)[0]


@pytest.fixture(scope="module")
def oracle(network: Network, tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    """transformers' model over a dequantized copy: it cannot run fp8 in fp32 on a CPU."""
    directory: Path = tmp_path_factory.mktemp("dequantized")
    mtp = f"model.layers.{network.shape.num_hidden_layers}."
    weights = {name: w.clone() for name, w in unstacked(network) if not name.startswith(mtp)}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((MODEL_DIR / "config.json").read_text())
    del config["quantization_config"]
    (directory / "config.json").write_text(json.dumps(config))
    return transformers.DeepseekV3ForCausalLM.from_pretrained(  # type: ignore[no-any-return]
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@torch.no_grad()
def test_logits_agree_beyond_the_original_context(network: Network, oracle: torch.nn.Module) -> None:
    ids = torch.randint(5, network.shape.vocab_size, (1, 600), generator=torch.Generator().manual_seed(0))
    assert (oracle(ids).logits - network(ids)).abs().max() <= LOGIT_BOUND


@torch.no_grad()
def test_greedy_stories_are_equal(network: Network, oracle: Any) -> None:
    tokenizer = load_network(MODEL_DIR)[1]
    prompt = tokenizer.encode(as_chat("Tell a story about a frog.")).ids
    ids = torch.tensor([prompt])
    theirs = oracle.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)
    ours = generate(network, prompt, NEW_TOKENS, eos=-1, temperature=0, seed=0)
    told = theirs[0, len(prompt) :].tolist()
    assert told == ours[: len(told)]
