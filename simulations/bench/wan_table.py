"""The result of `make bench-wan` as Markdown."""

from collections.abc import Mapping
from typing import Any, cast


def table(result: Mapping[str, object]) -> str:
    """A row a cell."""
    rows = cast(list[dict[str, Any]], result["rows"])
    head = [
        f"{result['nodes']} nodes, one holder of every expert, {result['moe_layers']} MoE layers, {result['tokens']}"
        f" tokens an answer, {result['rounds']} rounds, {result['seconds']:.0f} s, TCP {result['tcp']}, commit"
        f" {result['commit']}, {result['machine']}",
        "",
        "| activations | Mbit/s | loss % | RTT ms | streams | tokens/s in all (range) | ratio to the fewest streams"
        " | ms a token | p99 | floor | KB a token | cores: client | nodes | others |",
        "|" + "---|" * 14,
    ]
    return "\n".join([*head, *(_row(row, _baseline(row, rows)) for row in rows)])


def _baseline(row: Mapping[str, Any], rows: list[dict[str, Any]]) -> Mapping[str, Any]:
    """The cell with the fewest streams on the same network."""
    names = ("activations", "mbit_per_s", "loss", "rtt_ms")
    same = [each for each in rows if all(each[name] == row[name] for name in names)]
    return min(same, key=lambda each: int(each["streams"]))


def _row(row: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    network = f"{row['mbit_per_s']:g} | {100 * row['loss']:g} | {row['rtt_ms']:g} | {row['streams']}"
    if "tokens_per_s" not in row:
        why = f"failed: {', '.join(row['failures'])}" if row["failures"] else "not measured, the time was over"
        return f"| {row['activations']} | {network} | {why} |" + " |" * 8
    least, most = row["tokens_per_s_range"]
    failed = f", {len(row['failures'])} failed" if row["failures"] else ""
    ratio = f"{row['tokens_per_s'] / baseline['tokens_per_s']:.1f}" if "tokens_per_s" in baseline else ""
    return (
        f"| {row['activations']} | {network} | {row['tokens_per_s']:.1f} ({least:.1f}-{most:.1f}{failed}) | {ratio}"
        f" | {row['token_ms']:.1f} | {row['token_ms_p99']:.1f} | {row['floor_ms']:g}"
        f" | {row['bytes_per_token'] / 1000:.1f} | {row['client_cores']:.2f} | {row['nodes_cores']:.2f}"
        f" | {row['other_cores']:.2f} |"
    )
