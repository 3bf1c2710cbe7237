"""How good the exported model is: bits per byte, router balance, MTP acceptance, samples.

Everything is measured on the exported weights (dequantized exactly), in fp32, on held-out documents. Run it as
`python -m shoal.simulations.demo_model.evaluate`; it prints one JSON object, from which the card's figures come.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from shoal.simulations.demo_model.bpe import token_id
from shoal.simulations.demo_model.corpus import Document, load, split
from shoal.simulations.demo_model.export import load_network
from shoal.simulations.demo_model.network import Network
from shoal.simulations.demo_model.ngram import KneserNey
from shoal.simulations.demo_model.prompts import BOS, EOS, as_chat

MODEL_DIR = Path(__file__).parent / "model"

WINDOW_TOKENS = 1024
"""Longest context in training."""
NGRAM_ORDER = 8
"""The best order of 5..8 on the held-out text itself: the choice favours the baseline."""

SAMPLE_REQUESTS = (
    "Tell a story about a frog.",
    "Tell a story about an elephant.",
    "Tell a story about a girl.",
    "Cuenta un cuento sobre una gallina.",
    "Conta uma história sobre um leão.",
    "Raconte une histoire sur un chien.",
    "Simulia hadithi kuhusu simba.",
)
SAMPLE_TOKENS = 160
SAMPLE_TEMPERATURE = 0.7
SAMPLE_TOP_P = 0.9
SAMPLE_SEED = 7

ACCEPTANCE_PROMPTS = 12
ACCEPTANCE_TOKENS = 96
"""Continuations for the self-generated MTP figure: number, and tokens of each."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What the card says about a checkpoint; `as_json` is what the command prints."""

    network_bits_per_byte: dict[str, float]
    ngram_bits_per_byte: dict[str, float]
    held_out_bytes: dict[str, int]
    router_max_over_mean: list[float]
    mtp_acceptance_held_out: float
    mtp_acceptance_own_text: float
    samples: dict[str, str]

    def as_json(self) -> str:
        """One indented JSON object."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return json.dumps(fields, indent=1, ensure_ascii=False)


def predictions(
    network: Network, ids: list[int], window_tokens: int = WINDOW_TOKENS
) -> Iterator[tuple[Tensor, Tensor]]:
    """`(logits [N, V], targets i64[N])` window after window, which cover every token of `ids` but the first once.

    Windows overlap by half, so that every token beyond the first window has at least `window_tokens / 2` before it.
    """
    done = 1
    for start in range(0, len(ids), window_tokens // 2):
        window = torch.tensor([ids[start : start + window_tokens]], device=network.angles.device)
        fresh = done - start - 1
        yield network(window)[0, fresh:-1], window[0, 1 + fresh :]
        done = start + window.shape[1]
        if done == len(ids):
            break


def token_bits(network: Network, ids: list[int], window_tokens: int = WINDOW_TOKENS) -> Tensor:
    """`-log2 p` of every token of `ids` but the first, `[len(ids) - 1]`; `predictions` says after which context."""
    scored = [
        F.cross_entropy(logits, targets, reduction="none")
        for logits, targets in predictions(network, ids, window_tokens)
    ]
    return torch.cat(scored) / math.log(2)


def groups_of(document: Document) -> Iterator[str]:
    """The rows of the card's table that a document counts for."""
    yield "all"
    yield f"{document.kind}: all"
    yield f"{document.kind}: {document.language}"


@torch.no_grad()
def network_bits(
    network: Network, tokenizer: Tokenizer, documents: list[Document], window_tokens: int = WINDOW_TOKENS
) -> dict[str, float]:
    """Bits per byte by group; the end-of-text token is not scored, the n-gram model has none either."""
    bits: Counter[str] = Counter()
    for document in documents:
        ids = tokenizer.encode(BOS + document.plain).ids
        total = float(token_bits(network, ids, window_tokens).sum())
        bits.update(dict.fromkeys(groups_of(document), total))
    sizes = group_bytes(documents)
    return {group: bits[group] / sizes[group] for group in sizes}


def ngram_bits(train: list[Document], documents: list[Document]) -> dict[str, float]:
    """Bits per byte by group of the byte n-gram model trained on `train`."""
    model = KneserNey([d.plain.encode() for d in train], NGRAM_ORDER)
    bits: Counter[str] = Counter()
    for document in documents:
        bits.update(dict.fromkeys(groups_of(document), model.bits(document.plain.encode())))
    sizes = group_bytes(documents)
    return {group: bits[group] / sizes[group] for group in sizes}


def group_bytes(documents: list[Document]) -> dict[str, int]:
    """Held-out bytes by group, largest first."""
    sizes: Counter[str] = Counter()
    for document in documents:
        sizes.update(dict.fromkeys(groups_of(document), len(document.plain.encode())))
    return dict(sizes.most_common())


@torch.no_grad()
def router_balance(network: Network, tokenizer: Tokenizer, documents: list[Document]) -> list[float]:
    """Busiest expert's load over the mean, per routed layer (the MTP layer last), over all held-out tokens."""
    loads = [torch.zeros(network.shape.n_routed_experts) for _ in network.moe_layers()]
    for document in documents:
        ids = tokenizer.encode(BOS + document.plain).ids[:WINDOW_TOKENS]
        network.with_drafts(torch.tensor([ids]))
        loads = [load + layer.load for load, layer in zip(loads, network.moe_layers(), strict=True)]
    return [float(load.max() / load.mean()) for load in loads]


@torch.no_grad()
def accepted_drafts(network: Network, ids: list[int], first: int = 0) -> tuple[int, int]:
    """`(accepted, drafted)`: drafts for t+2 that equal what the main model says once it has seen t+1, both greedy."""
    prediction = network.with_drafts(torch.tensor([ids[:WINDOW_TOKENS]]))
    same = prediction.mtp[0, first:].argmax(-1) == prediction.main[0, 1 + first :].argmax(-1)
    return int(same.sum()), len(same)


@torch.no_grad()
def generate(
    network: Network, ids: list[int], num_tokens: int, eos: int, *, temperature: float, seed: int
) -> list[int]:
    """Continue `ids` until `eos` (not returned) or `num_tokens`; temperature 0 is greedy, otherwise top-p 0.9."""
    generator = torch.Generator().manual_seed(seed)
    made: list[int] = []
    while len(made) < num_tokens:
        logits = network(torch.tensor([ids + made]))[0, -1]
        token = int(logits.argmax()) if temperature == 0 else _sample(logits / temperature, generator)
        if token == eos:
            break
        made.append(token)
    return made


def _sample(logits: Tensor, generator: torch.Generator) -> int:
    probabilities, order = logits.softmax(-1).sort(descending=True)
    outside = probabilities.cumsum(-1) - probabilities > SAMPLE_TOP_P
    return int(order[torch.multinomial(probabilities.masked_fill(outside, 0.0), 1, generator=generator)])


def mtp_acceptance(network: Network, tokenizer: Tokenizer, documents: list[Document]) -> tuple[float, float]:
    """Share of accepted drafts on held-out text, and on the model's own greedy continuations of it."""
    held_out = [accepted_drafts(network, tokenizer.encode(BOS + d.plain).ids) for d in documents]
    stories = [d for d in documents if d.kind == "story" and d.language == "en"][:ACCEPTANCE_PROMPTS]
    own = []
    for story in stories:
        prompt = tokenizer.encode(BOS + story.plain).ids[:48]
        made = generate(network, prompt, ACCEPTANCE_TOKENS, token_id(tokenizer, EOS), temperature=0, seed=0)
        own.append(accepted_drafts(network, prompt + made, first=len(prompt) - 2))
    return _share(held_out), _share(own)


def _share(counts: list[tuple[int, int]]) -> float:
    return sum(accepted for accepted, _ in counts) / max(sum(drafted for _, drafted in counts), 1)


def samples(network: Network, tokenizer: Tokenizer) -> dict[str, str]:
    """One unedited answer to each of `SAMPLE_REQUESTS`."""
    eos = token_id(tokenizer, EOS)
    answers = {}
    for request in SAMPLE_REQUESTS:
        ids = tokenizer.encode(as_chat(request)).ids
        made = generate(network, ids, SAMPLE_TOKENS, eos, temperature=SAMPLE_TEMPERATURE, seed=SAMPLE_SEED)
        answers[request] = tokenizer.decode(made)
    return answers


def measure(directory: Path) -> Figures:
    """All figures of the checkpoint in `directory` (about two minutes on two cores)."""
    network, tokenizer = load_network(directory)
    train, held_out = split(load())
    on_held_out, on_own_text = mtp_acceptance(network, tokenizer, held_out)
    return Figures(
        network_bits_per_byte=_rounded(network_bits(network, tokenizer, held_out)),
        ngram_bits_per_byte=_rounded(ngram_bits(train, held_out)),
        held_out_bytes=group_bytes(held_out),
        router_max_over_mean=[round(ratio, 2) for ratio in router_balance(network, tokenizer, held_out)],
        mtp_acceptance_held_out=round(on_held_out, 3),
        mtp_acceptance_own_text=round(on_own_text, 3),
        samples=samples(network, tokenizer),
    )


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


def main() -> None:
    """Print the figures of one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="checkpoint directory (default: the shipped one)")
    print(measure(parser.parse_args().model).as_json())


if __name__ == "__main__":
    main()
