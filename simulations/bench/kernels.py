"""What a call of our kernels costs on this machine: ours against torch's best bf16, side by side in one process.

One operation of DeepSeek-V3 a call (`kernel_ops.py`): an expert, as nodes run them, or a plain linear, as trunks do.
Calls come in short blocks, ours and torch's in turns (`turns.py`), so that both meet the same machine. Limits of the
machine are probed in the same run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from shoal.kernels.cpu import CpuKernels, Format, Isa
from shoal.simulations.bench.kernel_ops import EXPERT_ROTATED_BYTES, HIDDEN, INTER, OPS, ExpertOp, Op, Side
from shoal.simulations.bench.machine import describe_machine, git_commit, num_usable_cores
from shoal.simulations.bench.turns import TIME_S, all_calls, middle, paired_ratio, take_turns

LINEAR_TIME_S = TIME_S / 2
"""Of a row of a linear: there are four of them to one expert."""

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
    ops: Sequence[str] = tuple(OPS),
) -> dict[str, object]:
    """Measure every operation, by name, in every format with every number of tokens; the result is one JSON object.

    `threads` 0: one per core.

    Raises:
        RuntimeError: shoal was installed without its C++ kernels.
    """
    threads = threads or num_usable_cores()
    torch.set_num_threads(threads)
    kernels = CpuKernels(threads, isa)
    limits = Limits(kernels.probe_read(EXPERT_ROTATED_BYTES) / 1e9, kernels.probe_multiply() / 1e12)
    rows = [row for name in ops for row in _rows(OPS[name], kernels, formats, tokens, limits)]
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
        f"{'op':10} {'format':10} {'tokens':>6} {'ms':>8} {'± ms':>7} {'torch ms':>8} {'ratio':>6}"
        f" {'paired':>6} {'±':>5}"
        f" {'best':>8} {'torch':>8} {'ratio':>6}"
        f" {'GB/s':>6} {'%':>4}"
        f" {'TFLOP/s':>8} {'%':>4}",
    ]
    lines += [
        f"{row['op']:10} {row['format']:10} {row['tokens']:6} {row['ms']:8.3f} {row['spread_ms']:7.3f}"
        f" {row['torch_ms']:8.3f} {row['ratio']:6.2f} {row['paired_ratio']:6.2f} {row['paired_spread']:5.2f}"
        f" {row['best_ms']:8.3f} {row['torch_best_ms']:8.3f} {row['best_ratio']:6.2f}"
        f" {row['gb_per_s']:6.1f} {100 * row['read_share']:4.0f} {row['tflop_per_s']:8.3f}"
        f" {100 * row['multiply_share']:4.0f}"
        for row in rows
    ]
    return "\n".join(lines)


def _rows(
    op: Op, kernels: CpuKernels, formats: Sequence[Format], tokens: Sequence[int], limits: Limits
) -> Iterator[dict[str, object]]:
    peer = op.torch_bf16()
    for weight_format in formats:
        ours = op.ours(kernels, weight_format)
        for count in tokens:
            yield {"format": weight_format.name.lower(), "op": op.name, **_row(op, ours, peer, count, limits)}
        del ours  # before the next gigabyte


def _row(op: Op, ours: Side, peer: Side, num_tokens: int, limits: Limits) -> dict[str, object]:
    time_s = TIME_S if isinstance(op, ExpertOp) else LINEAR_TIME_S
    blocks, torch_blocks = take_turns((ours.call_of(num_tokens), peer.call_of(num_tokens)), time_s)
    times_s, torch_times_s = all_calls(blocks), all_calls(torch_blocks)
    time, torch_s, paired = middle(times_s), middle(torch_times_s).median, paired_ratio(blocks, torch_blocks)
    median_s = time.median
    flop = 2 * op.macs_per_token * num_tokens
    gb_per_s, tflop_per_s = ours.size_bytes / median_s / 1e9, flop / median_s / 1e12
    return {
        "tokens": num_tokens,
        "ms": round(1000 * median_s, 3),
        "spread_ms": round(1000 * time.spread, 3),
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
