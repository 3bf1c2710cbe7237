"""What a weight format costs the demonstration model: bits per byte, perplexity, and other greedy tokens.

The routed experts are stored in the format and read back, the trunk stays as it is; everything runs in fp32, so the
kernels' own rounding is not in it. Scored are held-out texts, each token after the true ones before it.
"""

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy

from shoal.experts.weight_formats import STORED
from shoal.protocol.messages import WeightFormat
from shoal.simulations.bench.quantizers import Expert, round_trip
from shoal.simulations.demo_model.corpus import Document
from shoal.simulations.demo_model.evaluate import predictions
from shoal.simulations.demo_model.network import Network
from shoal.simulations.demo_model.prompts import BOS

BASELINE = WeightFormat.BF16
"""What the other formats are compared with: the demonstration model's weights are bf16 numbers."""


@dataclass(frozen=True, slots=True)
class Score:
    """How a network does on some texts. `greedy`: the token it finds likeliest at every position, i64[tokens]."""

    nats: float
    num_bytes: int
    greedy: Tensor

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.num_bytes

    @property
    def nats_per_token(self) -> float:
        return self.nats / len(self.greedy)


@torch.no_grad()
def score(network: Network, tokenizer: Tokenizer, documents: Sequence[Document]) -> Score:
    """Score every token of every document but the mark that begins it."""
    nats, greedy = 0.0, []
    for document in documents:
        for logits, targets in predictions(network, tokenizer.encode(BOS + document.plain).ids):
            nats += float(cross_entropy(logits, targets, reduction="sum"))
            greedy.append(logits.argmax(-1))
    return Score(nats, sum(len(document.plain.encode()) for document in documents), torch.cat(greedy))


def in_format(network: Network, weight_format: WeightFormat) -> Network:
    """A copy whose routed experts have been through a format."""
    converted = deepcopy(network)
    block = STORED[weight_format].scale_block
    is_by_row = block is None or block[0] == 1  # then the rows of all experts may go together
    for _, experts in expert_weights(converted):
        for matrix in [experts.flatten(0, 1)] if is_by_row else experts:
            matrix.copy_(round_trip(matrix, weight_format))
    return converted


def compare(scored: Score, baseline: Score) -> dict[str, float]:
    """One row of the table. `changed_tokens`: share of positions where the likeliest token is another one."""
    nats = scored.nats_per_token
    return {
        "bits_per_byte": round(scored.bits_per_byte, 4),
        "perplexity": round(math.exp(nats), 3),
        "perplexity_ratio": round(math.exp(nats - baseline.nats_per_token), 4),
        "changed_tokens": round(float((scored.greedy != baseline.greedy).float().mean()), 4),
    }


def expert_weights(network: Network) -> Iterator[tuple[str, Tensor]]:
    """The stacked weights of routed experts, f32[E, out, in], by name; changing them changes the network."""
    for name, weight in network.state_dict().items():
        if ".mlp.experts." in name:
            yield name, weight


def demo_experts(network: Network) -> list[Expert]:
    """The first expert of every routed layer."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, weight in expert_weights(network):
        layer, projection = name.rsplit(".", 1)
        layers.setdefault(layer, {})[projection.removesuffix("_proj")] = weight[0]
    return list(layers.values())
