"""What a trunk format costs the demonstration model in accuracy: its logits, perplexity and likeliest tokens.

Run it as `python -m shoal.simulations.bench.trunk_formats`; it prints one JSON object. Everything runs in fp32 as a
client would run it, experts as published: differences are the trunk's weights' alone. Baseline: the dense trunk.
"""

import argparse
import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy

from shoal.client.trunk.checkpoint import load_trunk
from shoal.client.trunk.linear_maker import TrunkFormat, linear_maker
from shoal.client.trunk.local_experts import LocalExperts
from shoal.client.trunk.model import Trunk
from shoal.client.trunk.moe import RoutedExperts
from shoal.experts.choose_backend import KernelChoice, choose_backend
from shoal.experts.store import ModelStore
from shoal.experts.worker import InlineWorker
from shoal.protocol.messages import Rounding
from shoal.simulations.bench.machine import describe_machine, git_commit
from shoal.simulations.demo_model import MODEL_DIRECTORY
from shoal.simulations.demo_model.held_out import held_out_stories
from shoal.simulations.demo_model.prompts import BOS

NUM_STORIES = 16
STORY_TOKENS = 384
"""Of each story; more context changes no comparison."""

CHUNK_TOKENS = 128
THREADS = 1


@dataclass(frozen=True, slots=True)
class Scored:
    """Logits of every position that predicts a token, and the mean surprise in nats."""

    logits: Tensor
    """f32[N, V]"""
    nats: float


def bench_trunk_formats(
    formats: Sequence[TrunkFormat] = tuple(TrunkFormat), num_stories: int = NUM_STORIES
) -> dict[str, object]:
    """A row for every format.

    Raises:
        InvalidRequest: shoal was installed without its C++ kernels.
    """
    torch.set_num_threads(THREADS)
    tokenizer = Tokenizer.from_file(str(MODEL_DIRECTORY / "tokenizer.json"))
    stories = [tokenizer.encode(BOS + story.plain).ids[:STORY_TOKENS] for story in held_out_stories()[:num_stories]]
    with TemporaryDirectory() as cache, ModelStore.open(MODEL_DIRECTORY, Path(cache)) as store:
        experts = LocalExperts(store, choose_backend(KernelChoice.AUTO, THREADS), Rounding.FP32, InlineWorker())

        def scored(trunk_format: TrunkFormat) -> tuple[Trunk, Scored]:
            maker = linear_maker(trunk_format, torch.float32, THREADS)
            trunk = load_trunk(store, InlineWorker(), torch.float32, maker=maker)
            return trunk, _score(trunk, experts, stories)

        baseline = scored(TrunkFormat.DENSE)[1]
        rows = [_row(trunk_format, *scored(trunk_format), baseline) for trunk_format in formats]
    return {
        "machine": describe_machine(),
        "commit": git_commit(),
        "num_stories": len(stories),
        "num_tokens": len(baseline.logits),
        "rows": rows,
    }


def _score(trunk: Trunk, experts: RoutedExperts, stories: Sequence[Sequence[int]]) -> Scored:
    logits = [asyncio.run(_logits(trunk, experts, torch.tensor(ids))) for ids in stories]
    targets = torch.cat([torch.tensor(ids[1:]) for ids in stories])
    joined = torch.cat(logits)
    return Scored(joined, float(cross_entropy(joined, targets)))


async def _logits(trunk: Trunk, experts: RoutedExperts, ids: Tensor) -> Tensor:
    cache = trunk.new_cache()
    chunks = [
        await trunk.logits(await trunk.forward(chunk, cache, experts)) for chunk in torch.split(ids, CHUNK_TOKENS)
    ]
    return torch.cat(chunks)[:-1]  # the last predicts what is not there


def _row(trunk_format: TrunkFormat, trunk: Trunk, scored: Scored, baseline: Scored) -> dict[str, object]:
    error = (scored.logits - baseline.logits).norm(dim=-1) / baseline.logits.norm(dim=-1)
    is_changed = scored.logits.argmax(-1) != baseline.logits.argmax(-1)
    return {
        "format": trunk_format.value,
        "resident_mb": round(trunk.resident_bytes / 1e6, 2),
        "logits_error_median": float(f"{float(error.median()):.3g}"),
        "perplexity": round(math.exp(scored.nats), 3),
        "perplexity_ratio": round(math.exp(scored.nats - baseline.nats), 4),
        "changed_tokens": round(float(is_changed.float().mean()), 4),
    }


def main() -> None:
    """Print the rows as JSON."""
    parser = argparse.ArgumentParser(description="What each trunk format costs the demonstration model.")
    parser.add_argument("--stories", type=int, default=NUM_STORIES, help="held-out English stories to score")
    print(json.dumps(bench_trunk_formats(num_stories=parser.parse_args().stories)))


if __name__ == "__main__":
    main()
