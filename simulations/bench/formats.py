"""What each weight format costs in accuracy: `shoal bench formats`.

Three questions, a table each: what quantization takes from the weights (`quantizers.py`), what that costs the
demonstration model (`perplexity.py`), and how far the kernels stray from exact arithmetic on the weights that they were
given (`kernel_errors.py`). One thread: quantizing with torch's threads on a busy machine takes ten times as long.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from shoal.experts.weight_formats import stored_bytes
from shoal.protocol.messages import WeightFormat
from shoal.simulations.bench.kernel_errors import BOUND, TOKENS, Paths, kernel_errors, paths
from shoal.simulations.bench.machine import describe_machine, git_commit
from shoal.simulations.bench.perplexity import BASELINE, Score, compare, demo_experts, in_format, score
from shoal.simulations.bench.quantizers import V3, quantizer_errors
from shoal.simulations.demo_model.evaluate import MODEL_DIR
from shoal.simulations.demo_model.export import load_network
from shoal.simulations.demo_model.held_out import held_out_stories

Row = Mapping[str, object]

ERRORS = ("v3_weights", "demo_weights", "gaussian_output", "demo_output")
"""Columns of the first table, each followed by the baseline's."""

DEMO = ("bits_per_byte", "perplexity", "perplexity_ratio", "changed_tokens")
THREADS = 1


@torch.no_grad()
def bench_formats(
    formats: Sequence[WeightFormat] = tuple(WeightFormat), directory: Path = MODEL_DIR, num_documents: int | None = None
) -> dict[str, object]:
    """A row for every format; scored are the held-out English stories, or the first `num_documents` of them."""
    torch.set_num_threads(THREADS)
    network, tokenizer = load_network(directory)
    documents, backends = held_out_stories()[:num_documents], paths(THREADS)
    baseline, demo = score(in_format(network, BASELINE), tokenizer, documents), demo_experts(network)

    def scored(weight_format: WeightFormat) -> Score:
        is_baseline = weight_format is BASELINE
        return baseline if is_baseline else score(in_format(network, weight_format), tokenizer, documents)

    rows = [
        {"format": each.name.lower(), "v3_expert_mb": round(stored_bytes(V3, each) / 1e6, 2)}
        | quantizer_errors(each, demo)
        | compare(scored(each), baseline)
        | _kernels(each, backends)
        for each in formats
    ]
    return {
        "machine": describe_machine(),
        "commit": git_commit(),
        "text": f"{len(documents)} held-out English stories",
        "num_bytes": baseline.num_bytes,
        "num_tokens": len(baseline.greedy),
        "rows": rows,
    }


def table(result: Mapping[str, object]) -> str:
    """The result of `bench_formats` for people."""
    rows = result["rows"]
    if not isinstance(rows, list):
        raise TypeError("not a result of bench_formats")
    return "\n".join(
        (
            f"{result['machine']}, commit {result['commit']}",
            *_quantizer_table(rows),
            "",
            f"demonstration model, routed experts in the format, fp32 arithmetic; {result['text']},"
            f" {result['num_bytes']} bytes, {result['num_tokens']} tokens; changed: greedy tokens that differ from"
            f" {BASELINE.name.lower()}'s",
            *_demo_table(rows),
            "",
            "kernels in rounding 1: relative L2 to fp64 on the dequantized weights, largest of calls of"
            f" {', '.join(map(str, TOKENS))} rows; spread: largest between two paths; promised {BOUND}",
            *_kernel_table(rows),
        )
    )


def _kernels(weight_format: WeightFormat, backends: Paths) -> dict[str, object]:
    measured = kernel_errors(weight_format, backends)
    return {"kernel_errors": measured["errors"], "kernel_spread": measured["spread"]}


def _quantizer_table(rows: Sequence[Row]) -> Iterator[str]:
    yield "relative L2 of what is stored; in brackets plain absmax"
    yield f"{'format':10} {'V3 expert MB':>12}" + "".join(f" {name:>19}" for name in ERRORS)
    for row in rows:
        cells = (f"{row[name]} ({_cell(row[f'{name}_absmax'])})" for name in ERRORS)
        yield f"{row['format']:10} {row['v3_expert_mb']:>12}" + "".join(f" {cell:>19}" for cell in cells)


def _demo_table(rows: Sequence[Row]) -> Iterator[str]:
    yield f"{'format':10}" + "".join(f" {name:>17}" for name in DEMO)
    for row in rows:
        yield f"{row['format']:10}" + "".join(f" {row[name]:>17}" for name in DEMO)


def _kernel_table(rows: Sequence[Row]) -> Iterator[str]:
    names = list(_errors(rows[0]))
    yield f"{'format':10}" + "".join(f" {name:>12}" for name in (*names, "spread"))
    for row in rows:
        cells = (*(_errors(row)[name] for name in names), row["kernel_spread"])
        yield f"{row['format']:10}" + "".join(f" {cell:>12}" for cell in cells)


def _errors(row: Row) -> Mapping[str, float]:
    errors = row["kernel_errors"]
    if not isinstance(errors, dict):
        raise TypeError("not a row of bench_formats")
    return errors


def _cell(value: object) -> str:
    return "-" if value is None else str(value)


if __name__ == "__main__":
    print(json.dumps(bench_formats()))
