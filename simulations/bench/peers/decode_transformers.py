"""transformers decodes a small DeepSeek-V3, in an environment of its own; it also makes the model.

decode_transformers DIRECTORY     {"tokens": 48} -> {"ids": […], "seconds": […]}, of every token but the first
"""

import sys
from pathlib import Path
from time import perf_counter

import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from shoal.simulations.bench.peers.program import Answer, answer_lines
from shoal.simulations.bench.peers.small_model import PROMPT_IDS, SEED, SHAPE


def _model(directory: Path) -> DeepseekV3ForCausalLM:
    """The model of the directory, made and saved there: fp32, normal weights, always the same."""
    torch.manual_seed(SEED)
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**SHAPE)).float().eval()
    model.save_pretrained(directory)
    return model


def _decode(model: DeepseekV3ForCausalLM, num_tokens: int) -> Answer:
    ids, seconds, cache = list[int](), list[float](), None
    step = torch.tensor([PROMPT_IDS])
    with torch.inference_mode():
        for _ in range(num_tokens):
            started = perf_counter()
            out = model(step, past_key_values=cache, use_cache=True)
            cache, step = out.past_key_values, out.logits[:, -1:].argmax(-1)
            ids.append(int(step))
            seconds.append(perf_counter() - started)
    return {"ids": ids, "seconds": seconds[1:]}


def main() -> None:
    """Make the model, then answer."""
    torch.set_num_threads(1)
    model = _model(Path(sys.argv[1]))
    answer_lines(lambda question: _decode(model, question["tokens"]))


if __name__ == "__main__":
    main()
