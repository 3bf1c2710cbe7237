"""What an expert call costs on this machine: ours against torch's best bf16, side by side in one process.

One DeepSeek-V3 expert a call. Weights rotate over more memory than any cache holds, as a node's experts do. Calls come
in short blocks, ours and torch's in turns (`turns.py`), so that both meet the same machine. Limits of the machine are
probed in the same run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import silu

from shoal.kernels.cpu import CpuKernels, Format, Isa, PackedMatrix, PackedSwiGLU
from shoal.kernels.formats import quantize_fp8_block
from shoal.kernels.int_groups import quantize_int4, quantize_int8
from shoal.kernels.mxfp4 import quantize_mxfp4
from shoal.simulations.bench.machine import describe_machine, git_commit, num_usable_cores
from shoal.simulations.bench.turns import Call, all_calls, middle, paired_ratio, take_turns

HIDDEN, INTER = 7168, 2048
"""DeepSeek-V3: `hidden_size`, `moe_intermediate_size`."""

ROTATED_BYTES = 900_000_000
"""Weights that calls rotate over: far above any L3."""

DEFAULT_TOKENS = (1, 8, 64, 512)
DEFAULT_FORMATS = tuple(Format)[:2] + tuple(Format)[3:]
"""All but f32, which no published model of this size has."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What this machine could do at best, measured by the same threads."""

    read_gb_per_s: float
    multiply_tflop_per_s: float


def bench_kernels(
    formats: Sequence[Format] = DEFAULT_FORMATS,
    tokens: Sequence[int] = DEFAULT_TOKENS,
    threads: int = 0,
    isa: Isa | None = None,
) -> dict[str, object]:
    """Measure every format with every number of tokens; the result is one JSON object. `threads` 0: one per core.

    Raises:
        RuntimeError: shoal was installed without its C++ kernels.
    """
    threads = threads or num_usable_cores()
    torch.set_num_threads(threads)
    kernels = CpuKernels(threads, isa)
    limits = Limits(kernels.probe_read(ROTATED_BYTES) / 1e9, kernels.probe_multiply() / 1e12)
    peer = _TorchBf16()
    rows: list[dict[str, object]] = []
    for weight_format in formats:
        ours = _Ours(kernels, weight_format)
        rows += [{"format": weight_format.name.lower(), **_row(ours, peer, count, limits)} for count in tokens]
        del ours  # before the next gigabyte
    return {
        "machine": describe_machine(),
        "commit": git_commit(),
        "threads": threads,
        "isa": kernels.isa.value,
        "torch": torch.__version__,
        "shape": {"hidden": HIDDEN, "inter": INTER},
        "read_gb_per_s": round(limits.read_gb_per_s, 1),
        "multiply_tflop_per_s": round(limits.multiply_tflop_per_s, 3),
        "rows": rows,
    }


def table(result: dict[str, object]) -> str:
    """The result of `bench_kernels` for people."""
    rows = result["rows"]
    if not isinstance(rows, list):
        raise TypeError("not a result of bench_kernels")
    lines = [
        f"{result['machine']}, commit {result['commit']}, {result['threads']} threads, {result['isa']}",
        f"limits: {result['read_gb_per_s']} GB/s read, {result['multiply_tflop_per_s']} TFLOP/s;"
        f" ratio: ours / torch {result['torch']} bf16 prepacked, of medians; paired: median over neighbouring blocks",
        f"{'format':10} {'tokens':>6} {'ms':>8} {'± ms':>7} {'torch ms':>8} {'ratio':>6} {'paired':>6} {'±':>5}"
        f" {'best':>8} {'torch':>8} {'ratio':>6}"
        f" {'GB/s':>6} {'%':>4}"
        f" {'TFLOP/s':>8} {'%':>4}",
    ]
    lines += [
        f"{row['format']:10} {row['tokens']:6} {row['ms']:8.3f} {row['spread_ms']:7.3f} {row['torch_ms']:8.3f}"
        f" {row['ratio']:6.2f} {row['paired_ratio']:6.2f} {row['paired_spread']:5.2f}"
        f" {row['best_ms']:8.3f} {row['torch_best_ms']:8.3f} {row['best_ratio']:6.2f}"
        f" {row['gb_per_s']:6.1f} {100 * row['read_share']:4.0f} {row['tflop_per_s']:8.3f}"
        f" {100 * row['multiply_share']:4.0f}"
        for row in rows
    ]
    return "\n".join(lines)


class _Ours:
    """Packed experts of one format, enough of them that none is in a cache when its turn comes."""

    def __init__(self, kernels: CpuKernels, weight_format: Format) -> None:
        self._kernels = kernels
        stored = [(shape, _store(_random(*shape), weight_format)) for shape in _shapes()]
        self._experts = [_pack(weight_format, stored)]
        self.size_bytes = self._experts[0].size_bytes
        self._experts += [_pack(weight_format, stored) for _ in range(ROTATED_BYTES // self.size_bytes)]

    def call_of(self, num_tokens: int) -> Call:
        """A call with `num_tokens` rows of one expert."""
        x = torch.randn(num_tokens, HIDDEN).bfloat16()
        row_idx, weights = torch.arange(num_tokens), torch.rand(num_tokens)

        def call(i: int) -> torch.Tensor:
            experts = [self._experts[i % len(self._experts)]]
            return self._kernels.grouped_swiglu(experts, x, row_idx, (0, num_tokens), weights, is_rounded=True)

        return call


class _TorchBf16:
    """torch's fastest way to run the same expert on a CPU: oneDNN with weights reordered at load."""

    def __init__(self) -> None:
        plain = [_random(*shape).bfloat16() for shape in _shapes()]
        size_bytes = sum(matrix.nbytes for matrix in plain)
        reorder = torch.ops.mkldnn._reorder_linear_weight
        self._experts = [[reorder(matrix) for matrix in plain] for _ in range(ROTATED_BYTES // size_bytes + 1)]

    def call_of(self, num_tokens: int) -> Call:
        """A call with `num_tokens` rows of one expert."""
        x, weights = torch.randn(num_tokens, HIDDEN).bfloat16(), torch.rand(num_tokens, 1)

        def linear(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, matrix, None, "none", [], "")
            return result

        def call(i: int) -> torch.Tensor:
            gate, up, down = self._experts[i % len(self._experts)]
            with torch.no_grad():
                y: torch.Tensor = linear(silu(linear(x, gate)) * linear(x, up), down).float() * weights
            return y

        return call


def _shapes() -> tuple[tuple[int, int], ...]:
    return (INTER, HIDDEN), (INTER, HIDDEN), (HIDDEN, INTER)


def _random(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)) / math.sqrt(columns)


def _store(weight: torch.Tensor, weight_format: Format) -> tuple[torch.Tensor, torch.Tensor | None]:
    match weight_format:
        case Format.FP8_BLOCK:
            return quantize_fp8_block(weight)
        case Format.BF16:
            return weight.bfloat16(), None
        case Format.F32:
            return weight, None
        case Format.MXFP4:
            data, scale = quantize_mxfp4(weight)
            return data, scale.view(torch.uint8)
        case Format.INT8_G128:
            return quantize_int8(weight)
        case _:
            return quantize_int4(weight, 32 if weight_format is Format.INT4_G32 else 128)


def _pack(
    weight_format: Format, stored: Sequence[tuple[tuple[int, int], tuple[torch.Tensor, torch.Tensor | None]]]
) -> PackedSwiGLU:
    gate, up, down = (PackedMatrix(weight_format, *shape, *weight) for shape, weight in stored)
    return PackedSwiGLU(gate, up, down)


def _row(ours: _Ours, peer: _TorchBf16, num_tokens: int, limits: Limits) -> dict[str, object]:
    blocks, torch_blocks = take_turns((ours.call_of(num_tokens), peer.call_of(num_tokens)))
    times_s, torch_times_s = all_calls(blocks), all_calls(torch_blocks)
    time_s, torch_s, paired = middle(times_s), middle(torch_times_s).median, paired_ratio(blocks, torch_blocks)
    median_s = time_s.median
    flop = 2 * 3 * HIDDEN * INTER * num_tokens
    gb_per_s, tflop_per_s = ours.size_bytes / median_s / 1e9, flop / median_s / 1e12
    return {
        "tokens": num_tokens,
        "ms": round(1000 * median_s, 3),
        "spread_ms": round(1000 * time_s.spread, 3),
        "torch_ms": round(1000 * torch_s, 3),
        "ratio": round(median_s / torch_s, 3),
        "paired_ratio": round(paired.median, 3),
        "paired_spread": round(paired.spread, 3),
        "best_ms": round(1000 * min(times_s), 3),
        "torch_best_ms": round(1000 * min(torch_times_s), 3),
        "best_ratio": round(min(times_s) / min(torch_times_s), 3),
        "num_calls": len(times_s),
        "gb_per_s": round(gb_per_s, 1),
        "read_share": round(gb_per_s / limits.read_gb_per_s, 3),
        "tflop_per_s": round(tflop_per_s, 3),
        "multiply_share": round(tflop_per_s / limits.multiply_tflop_per_s, 3),
    }
