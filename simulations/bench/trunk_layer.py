"""What a layer of the real trunk costs: DeepSeek-V3's dense layer at full width, run from packed weights.

`shoal bench trunk`. A layer of 583 M random weights is written as published (fp8 blocks), opened as any model is, in
every format, and decoded with; beside it runs the same layer on torch's best bf16 (oneDNN, weights reordered at load;
`kernel_ops.py`), in turns. Loading is measured too: seconds, what stays in memory, and the most that was needed.
"""

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from shoal.client.trunk.checkpoint import load_trunk
from shoal.client.trunk.head_maps import HeadSplit
from shoal.client.trunk.kv_cache import Rows
from shoal.client.trunk.linear import HeadMaps, Linear
from shoal.client.trunk.linear_maker import DenseMaker, LinearMaker, TrunkFormat, linear_maker
from shoal.client.trunk.model import Trunk
from shoal.experts.store import ModelStore
from shoal.experts.stored_weight import StoredWeight
from shoal.experts.worker import InlineWorker
from shoal.protocol.ids import LayerId
from shoal.simulations.bench.kernel_ops import HIDDEN, onednn_linear, reordered
from shoal.simulations.bench.machine import describe_machine, git_commit, num_usable_cores, peak_memory_since
from shoal.simulations.bench.turns import Call, all_calls, middle, paired_ratio, seconds, take_turns
from shoal.simulations.bench.v3_layer import write_layer

CONTEXT_TOKENS = 256
"""In the cache when a call comes: attention's own cost grows with it and is the same for all formats."""

DEFAULT_TOKENS = (1, 8)
DEFAULT_FORMATS = (TrunkFormat.AS_PUBLISHED, TrunkFormat.INT8_G128, TrunkFormat.INT4_G32, TrunkFormat.INT4_G128)
LOAD_THREADS = 1
"""Quantizing with torch's threads on a busy machine takes ten times as long."""


@dataclass(frozen=True, slots=True)
class OneDnnLinear(Linear):
    """torch's fastest bf16 linear on a CPU."""

    weight: Tensor
    """As `reordered` makes it."""
    resident_bytes: int

    def __call__(self, x: Tensor) -> Tensor:
        return onednn_linear(x, self.weight)


@dataclass(frozen=True, slots=True)
class OneDnnMaker(LinearMaker):
    """bf16 linears for oneDNN; everything else dense."""

    dense: DenseMaker

    def linear(self, weight: StoredWeight, bias: Tensor | None = None) -> Linear:
        values = weight.values(torch.bfloat16)
        return OneDnnLinear(reordered(values), values.nbytes)

    def head(self, weight: StoredWeight) -> Linear:
        return self.linear(weight)

    def router(self, weight: StoredWeight) -> Linear:
        return self.dense.router(weight)

    def embedding(self, weight: StoredWeight) -> Tensor:
        return self.dense.embedding(weight)

    def head_maps(self, kv_b: StoredWeight, split: HeadSplit) -> tuple[HeadMaps, HeadMaps]:
        return self.dense.head_maps(kv_b, split)


class NoExperts:
    """A dense layer asks for none."""

    async def __call__(self, layer: LayerId, x: Tensor, topk_idx: Tensor, topk_weights: Tensor) -> Tensor:
        raise AssertionError("a dense layer has no routed experts")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A layer, and what it took to load it."""

    trunk: Trunk
    load_s: float
    peak_bytes: int
    """Above what the process held before; 0 where the system does not say."""


def bench_trunk_layer(
    formats: Sequence[TrunkFormat] = DEFAULT_FORMATS, tokens: Sequence[int] = DEFAULT_TOKENS, threads: int = 0
) -> dict[str, object]:
    """Measure the layer in every format with every number of new tokens. `threads` 0: one per core.

    Takes 0.6 GB of temporary files and 2 GB of memory.

    Raises:
        InvalidRequest: shoal was installed without its C++ kernels.
    """
    threads = threads or num_usable_cores()
    with tempfile.TemporaryDirectory(prefix="shoal-layer-") as folder:
        write_layer(Path(folder) / "model")
        with ModelStore.open(Path(folder) / "model", Path(folder) / "cache") as store:
            baseline = _load(store, OneDnnMaker(DenseMaker(torch.bfloat16)))
            rows = [row for each in formats for row in _rows(store, each, baseline.trunk, tokens, threads)]
    return {
        "machine": describe_machine(),
        "commit": git_commit(),
        "threads": threads,
        "torch": torch.__version__,
        "context": CONTEXT_TOKENS,
        "baseline_resident_mb": round(baseline.trunk.resident_bytes / 1e6, 1),
        "rows": rows,
    }


def table(result: dict[str, object]) -> str:
    """The result of `bench_trunk_layer` for people."""
    rows = result["rows"]
    if not isinstance(rows, list):
        raise TypeError("not a result of bench_trunk_layer")
    lines = [
        f"{result['machine']}, commit {result['commit']}, {result['threads']} threads, context {result['context']};"
        f" ratio: to torch {result['torch']} bf16, {result['baseline_resident_mb']} MB",
        f"{'format':12} {'MB':>7} {'load s':>7} {'peak MB':>8} {'tokens':>6} {'ms':>8} {'± ms':>7} {'torch ms':>8}"
        f" {'ratio':>6} {'paired':>6} {'±':>5} {'best':>8} {'ratio':>6}",
    ]
    lines += [
        f"{row['format']:12} {row['resident_mb']:7.1f} {row['load_s']:7.1f} {row['load_peak_mb']:8.1f}"
        f" {row['tokens']:6} {row['ms']:8.3f} {row['spread_ms']:7.3f} {row['torch_ms']:8.3f} {row['ratio']:6.2f}"
        f" {row['paired_ratio']:6.2f} {row['paired_spread']:5.2f} {row['best_ms']:8.3f} {row['best_ratio']:6.2f}"
        for row in rows
    ]
    return "\n".join(lines)


def _load(store: ModelStore, maker: LinearMaker) -> Loaded:
    torch.set_num_threads(LOAD_THREADS)
    before, trunks = psutil.Process().memory_info().rss, []

    def load(_: int) -> None:
        trunks.append(load_trunk(store, InlineWorker(), torch.bfloat16, range(1), maker))

    with peak_memory_since() as peak_bytes:
        load_s = seconds(load, 0)
        peak = peak_bytes()
    return Loaded(trunks[0], load_s, max(0, peak - before) if peak else 0)


def _rows(
    store: ModelStore, trunk_format: TrunkFormat, baseline: Trunk, tokens: Sequence[int], threads: int
) -> list[dict[str, object]]:
    loaded = _load(store, linear_maker(trunk_format, torch.bfloat16, threads))
    torch.set_num_threads(threads)
    rows: list[dict[str, object]] = []
    with asyncio.Runner() as runner:
        for count in tokens:
            ours, theirs = take_turns([_call(runner, trunk, count) for trunk in (loaded.trunk, baseline)])
            times_s, torch_s, paired = all_calls(ours), all_calls(theirs), paired_ratio(ours, theirs)
            time = middle(times_s)
            rows.append(
                {
                    "format": trunk_format.value,
                    "op": "dense_layer",
                    "resident_mb": round(loaded.trunk.resident_bytes / 1e6, 1),
                    "load_s": round(loaded.load_s, 1),
                    "load_peak_mb": round(loaded.peak_bytes / 1e6, 1),
                    "tokens": count,
                    "ms": round(1000 * time.median, 3),
                    "spread_ms": round(1000 * time.spread, 3),
                    "torch_ms": round(1000 * middle(torch_s).median, 3),
                    "ratio": round(time.median / middle(torch_s).median, 3),
                    "paired_ratio": round(paired.median, 3),
                    "paired_spread": round(paired.spread, 3),
                    "best_ms": round(1000 * min(times_s), 3),
                    "best_ratio": round(min(times_s) / min(torch_s), 3),
                    "num_calls": len(times_s),
                }
            )
    return rows


def _call(runner: asyncio.Runner, trunk: Trunk, num_tokens: int) -> Call:
    """Decode `num_tokens` after the context, over and over."""
    cache, experts = trunk.new_cache(), NoExperts()
    generator = torch.Generator().manual_seed(1)
    context, new = (torch.randn(n, HIDDEN, generator=generator).bfloat16() for n in (CONTEXT_TOKENS, num_tokens))
    runner.run(trunk.run_span(context, [Rows(CONTEXT_TOKENS, cache)], experts))

    def call(_: int) -> Tensor:
        cache.truncate(CONTEXT_TOKENS)
        return runner.run(trunk.run_span(new, [Rows(num_tokens, cache)], experts))

    return call
