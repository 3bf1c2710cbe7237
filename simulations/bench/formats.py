"""What each weight format costs in accuracy: one expert's output, and the demonstration model's bits per byte.

Errors are of the weights alone: everything is computed in fp32 or fp64 from dequantized weights, whatever the format,
so the kernels' own rounding (docs/adr/0004) is not in them. Run it as `python -m shoal.simulations.bench.formats`; it
prints one JSON object `{machine, commit, rows}`.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import linear, silu

from shoal.experts.specs import PROJECTIONS, ExpertSpec
from shoal.experts.weight_formats import STORED, expert_shapes, stored_bytes
from shoal.protocol.messages import WeightFormat
from shoal.simulations.bench.machine import describe_machine, git_commit
from shoal.simulations.demo_model.corpus import Document, load, split
from shoal.simulations.demo_model.evaluate import MODEL_DIR, token_bits
from shoal.simulations.demo_model.export import load_network
from shoal.simulations.demo_model.network import Network
from shoal.simulations.demo_model.prompts import BOS

Expert = dict[str, Tensor]
"""Gate, up and down by name, f32[out, in]."""

RoundTrip = Callable[[Tensor], Tensor]
"""A weight to a format and back."""

GAUSSIAN = ExpertSpec(hidden=2048, inter=1024)
"""Large enough that its errors are a DeepSeek-V3 expert's (7168, 2048) to two digits."""

V3 = ExpertSpec(hidden=7168, inter=2048)
NUM_ROWS = 64
SEED = 1

BASELINE = WeightFormat.BF16
"""Against what bits per byte are compared: the demonstration model's weights are bf16 numbers."""

ABSMAX_GRIDS = {WeightFormat.INT8_G128: (128, 127), WeightFormat.INT4_G32: (32, 7), WeightFormat.INT4_G128: (128, 7)}
"""Columns of a group and largest integer of the plain quantization that the search must beat."""


def round_trip(weight: Tensor, weight_format: WeightFormat) -> Tensor:
    """What is left of f32[out, in] after it was stored in a format."""
    stored = STORED[weight_format]
    data, scale = stored.quantize(weight)
    return data.float() if stored.dequantize is None or scale is None else stored.dequantize(data, scale)


def absmax(weight: Tensor, group_size: int, high: int) -> Tensor:
    """Integers -high..high with scale amax / high in fp32, a last group ragged: the baseline, stored nowhere."""
    padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % group_size))
    groups = padded.view(-1, group_size)
    scale = (groups.abs().amax(dim=1, keepdim=True) / high).clamp(min=2.0**-100)
    return ((groups / scale).round() * scale).view(padded.shape)[:, : weight.shape[1]]


def output_error(expert: Expert, convert: RoundTrip) -> float:
    """Relative L2 of an expert's output in fp64, over gaussian rows, when its weights are converted."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(NUM_ROWS, expert["gate"].shape[1], generator=generator, dtype=torch.float64)
    converted, exact = (_output(weights, x) for weights in ({n: convert(w) for n, w in expert.items()}, expert))
    return float((converted - exact).norm() / exact.norm())


def bench_formats(directory: Path = MODEL_DIR, num_documents: int | None = None) -> dict[str, object]:
    """Every format's row; scored are the held-out English stories, or the first `num_documents` of them."""
    network, tokenizer = load_network(directory)
    documents = [d for d in split(load())[1] if d.kind == "story" and d.language == "en"][:num_documents]
    scores = _scores(network, tokenizer, documents)
    rows = [_row(f, network) | _against(scores[f], scores[BASELINE]) for f in WeightFormat]
    return {
        "machine": describe_machine(),
        "commit": git_commit(),
        "num_documents": len(documents),
        "num_bytes": sum(len(document.plain.encode()) for document in documents),
        "rows": rows,
    }


def table(result: dict[str, object]) -> str:
    """The result of `bench_formats` for people."""
    rows = result["rows"]
    if not isinstance(rows, list):
        raise TypeError("not a result of bench_formats")
    lines = [f"{result['machine']}, commit {result['commit']}, {result['num_bytes']} held-out bytes"]
    columns = ("v3_expert_mb", "gaussian", "gaussian_absmax", "demo", "demo_absmax", "bits_per_byte", "perplexity")
    lines.append(f"{'format':10}" + "".join(f"{column:>16}" for column in (*columns, "ratio")))
    for row in rows:
        cells = (row[column] for column in (*columns, "perplexity_ratio"))
        lines.append(f"{row['format']:10}" + "".join(f"{'-' if cell is None else cell:>16}" for cell in cells))
    return "\n".join(lines)


def _output(expert: Expert, x: Tensor) -> Tensor:
    gate, up, down = (expert[name].double() for name in PROJECTIONS)
    return linear(silu(linear(x, gate)) * linear(x, up), down)


def _gaussian_expert() -> Expert:
    generator = torch.Generator().manual_seed(SEED)
    return {
        name: torch.randn(shape, generator=generator) * shape[1] ** -0.5
        for name, shape in expert_shapes(GAUSSIAN).items()
    }


def _expert_weights(network: Network) -> Iterator[tuple[str, Tensor]]:
    """The stacked weights of routed experts, f32[E, out, in], by name; changing them changes the network."""
    for name, weight in network.state_dict().items():
        if ".mlp.experts." in name:
            yield name, weight


def _demo_experts(network: Network) -> list[Expert]:
    """The first expert of every routed layer."""
    layers: dict[str, Expert] = {}
    for name, weight in _expert_weights(network):
        layer, projection = name.rsplit(".", 1)
        layers.setdefault(layer, {})[projection.removesuffix("_proj")] = weight[0]
    return list(layers.values())


def _scores(
    network: Network, tokenizer: Tokenizer, documents: list[Document]
) -> dict[WeightFormat, tuple[float, float]]:
    """Bits per byte and per token by format, with the routed experts in it and the trunk as it is."""
    plain = _score(network, tokenizer, documents)
    scores = {}
    for weight_format in WeightFormat:
        converted = deepcopy(network)
        changes = [_convert(weight, weight_format) for _, weight in _expert_weights(converted)]
        scores[weight_format] = _score(converted, tokenizer, documents) if any(changes) else plain
    return scores


def _convert(experts: Tensor, weight_format: WeightFormat) -> bool:
    """Store f32[E, out, in] in a format and read it back, in place; returns whether a number has changed."""
    block = STORED[weight_format].scale_block
    is_by_row = block is None or block[0] == 1  # then the rows of all experts may go together
    before = experts.clone()
    for matrix in [experts.flatten(0, 1)] if is_by_row else experts:
        matrix.copy_(round_trip(matrix, weight_format))
    return not torch.equal(before, experts)


@torch.no_grad()
def _score(network: Network, tokenizer: Tokenizer, documents: list[Document]) -> tuple[float, float]:
    bits = num_bytes = num_tokens = 0.0
    for document in documents:
        scored = token_bits(network, tokenizer.encode(BOS + document.plain).ids)
        bits += float(scored.sum())
        num_tokens += len(scored)
        num_bytes += len(document.plain.encode())
    return bits / num_bytes, bits / num_tokens


def _against(score: tuple[float, float], baseline: tuple[float, float]) -> dict[str, object]:
    return {
        "bits_per_byte": round(score[0], 4),
        "perplexity": round(2 ** score[1], 3),
        "perplexity_ratio": round(2 ** (score[1] - baseline[1]), 4),
    }


@torch.no_grad()
def _row(weight_format: WeightFormat, network: Network) -> dict[str, object]:
    gaussian, demo = _gaussian_expert(), _demo_experts(network)
    convert, plain = partial(round_trip, weight_format=weight_format), ABSMAX_GRIDS.get(weight_format)
    row: dict[str, object] = {
        "format": weight_format.name.lower(),
        "v3_expert_mb": round(stored_bytes(V3, weight_format) / 1e6, 2),
        "gaussian": _rounded(output_error(gaussian, convert)),
        "demo": _mean_error(demo, convert),
        "gaussian_absmax": None,
        "demo_absmax": None,
    }
    if plain is not None:
        baseline = partial(absmax, group_size=plain[0], high=plain[1])
        row |= {
            "gaussian_absmax": _rounded(output_error(gaussian, baseline)),
            "demo_absmax": _mean_error(demo, baseline),
        }
    return row


def _mean_error(experts: list[Expert], convert: RoundTrip) -> float:
    return _rounded(sum(output_error(expert, convert) for expert in experts) / len(experts))


def _rounded(error: float) -> float:
    return float(f"{error:.3g}")


def main() -> None:
    """Print the table of this machine as JSON, or for people."""
    parser = argparse.ArgumentParser(description="What each weight format costs in accuracy.")
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="checkpoint directory (default: the shipped one)")
    parser.add_argument("--documents", type=int, default=None, help="held-out English stories to score (default: all)")
    parser.add_argument("--table", action="store_true", help="a table instead of JSON")
    arguments = parser.parse_args()
    result = bench_formats(arguments.model, arguments.documents)
    print(table(result) if arguments.table else json.dumps(result))


if __name__ == "__main__":
    main()
