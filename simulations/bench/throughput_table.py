"""The throughput benchmark's result as Markdown, and which limit its figures name."""

from collections.abc import Mapping
from typing import Any, cast

PARTS = ("trunk", "experts", "wire", "holders_queue", "holders_compute", "straggling", "packing", "head", "sampling")
"""Of a pass, in the order of the table."""


def table(result: Mapping[str, object]) -> str:
    """Rates and cores, then where the time of a pass went."""
    rows = cast(list[dict[str, Any]], result["streams"])
    return "\n".join([*_head(cast(dict[str, Any], result)), "", *_rates(rows), "", *_budgets(rows)])


def _head(result: dict[str, Any]) -> list[str]:
    link = result["link"]
    rate = link["rate_bytes_per_s"]
    words = f"{8 * rate / 1e6:g} Mbit/s" if rate else "no limit of rate"
    why = f" ({result['network_reason']})" if result["network_reason"] else ""
    return [
        f"{result['dtype']}, trunk {result['trunk_format']}, {result['num_nodes']} nodes, {result['replicas']} holders"
        f" of every expert, {result['clients']} client(s), {result['tokens']} tokens after {result['prompt_tokens']},"
        f" {result['rounds']} rounds; RTT {link['rtt_ms']:g} ms, loss {100 * link['loss']:g} %, {words},"
        f" {result['network']}{why}, TCP {result['congestion_control']}, commit {result['commit']},"
        f" {result['machine']}",
    ]


def _rates(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| streams | groups | tokens/s in all (range) | ratio to the first (range) | ms per token | p99 | while all"
        " answer | slowest stream | rows a pass | waves | frames a token | requests a kernel call | cores: client"
        " | nodes | others |",
        "|" + "---|" * 15,
    ]
    for row in rows:
        low, high = row["tokens_per_s_range"]
        least, most = row["ratio_range"]
        lines.append(
            f"| {row['streams']} | {row['groups'] or 'auto'} | {row['tokens_per_s']:.0f} ({low:.0f}-{high:.0f})"
            f" | {row['ratio']:.2f} ({least:.2f}-{most:.2f}) | {row['token_ms']:.1f}"
            f" | {row['token_ms_p99']:.1f} | {row['together_ms']:.1f} | {row['slowest_stream_ms']:.1f}"
            f" | {row['rows_per_pass']:.1f}"
            f" | {row['waves_per_pass']:.2f} | {row['dispatches_per_token']:.2f} | {row['requests_per_call']:.2f}"
            f" | {row['client_cores']:.2f} | {row['nodes_cores']:.2f} | {row['other_cores']:.2f} |"
        )
    return lines


def _budgets(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| streams | groups | a pass, ms | " + " | ".join(name.replace("_", " ") for name in PARTS) + " |",
        "|" + "---|" * (3 + len(PARTS)),
    ]
    for row in rows:
        budget = row["budget_ms"]
        parts = " | ".join(f"{budget.get(name, 0.0):.1f}" for name in PARTS)
        lines.append(f"| {row['streams']} | {row['groups'] or 'auto'} | {budget.get('total', 0.0):.1f} | {parts} |")
    return lines
