"""The result of `make bench-wan` as Markdown: single answers beside their bound and with drafts, then all rates."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

NOT_MEASURED = "not measured, the time was over"


def table(result: Mapping[str, object]) -> str:
    """What it was measured on and both tables, to be put into a page as it is."""
    rows = cast(list[dict[str, Any]], result["rows"])
    return "\n\n".join([_head(cast(dict[str, Any], result), rows), _single(rows), _rates(rows)])


def failures(result: Mapping[str, object]) -> list[str]:
    """A line for every cell that failed and was never measured."""
    rows = cast(list[dict[str, Any]], result["rows"])
    return [
        f"{row['swarm']}, {row['activations']}, {row['mbit_per_s']:g} Mbit/s, loss {100 * row['loss']:g} %,"
        f" {row['rtt_ms']:g} ms, {row['streams']} streams failed: {', '.join(row['failures'])}"
        for row in rows
        if row["failures"] and "tokens_per_s" not in row
    ]


def _head(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    least, most = result["alone_ms_range"]
    bounded = [row for row in rows if "is_kept" in row]
    kept = sum(row["is_kept"] for row in bounded)
    measured, failed = sum("tokens_per_s" in row for row in rows), sum(bool(row["failures"]) for row in rows)
    machine = result["machine"]
    return " ".join(
        (
            f"TCP in every namespace: {result['tcp']}. {measured} of {len(rows)} cells measured in {result['rounds']}",
            f"rounds, {failed} with failures; {result['seconds']:.0f} s, commit {result['commit']};",
            f"{machine['cores']} cores of {machine['cpu']}, {machine['kernel']}, Python {machine['python']}. Swarm:",
            "nodes x holders of every expert. Held-out stories continued after 16 tokens, fp32; single answers have",
            f"{result['tokens_alone']} tokens and are greedy, others {result['tokens']} and are sampled.\n\nOne",
            f"process that holds every expert takes **{result['alone_ms']:.2f} ms** a token in the same run",
            f"({least:.2f}-{most:.2f}). Bound of a single answer without drafts: 1.10 x ({result['moe_layers']} MoE",
            f"layers x RTT + {result['alone_ms']:.2f} ms); it knows neither bytes nor losses.",
            f"**{kept} of {len(bounded)}** single answers keep to it.",
        )
    )


def _single(rows: Sequence[Mapping[str, Any]]) -> str:
    head = [
        "| swarm | activations | Mbit/s | loss % | RTT ms | an echo | ms a token (range) | p99 | bound | of it | goal"
        " | with drafts: ms a token | times the tokens/s (range) | tokens a run | tokens a pass | answers differ |",
        "|" + "---|" * 16,
    ]
    return "\n".join([*head, *(_single_row(row) for row in rows if row["streams"] == 1)])


def _single_row(row: Mapping[str, Any]) -> str:
    network = f"| {_network(row)} | {_echo(row)} | "
    if "is_kept" not in row:
        return f"{network}{_why(row)} |" + " |" * 9
    least, most = row["tokens_per_s_range"]
    words = (
        f"{network}{row['token_ms']:.1f} ({1000 / most:.1f}-{1000 / least:.1f}{_failed(row)}) | {row['gap_ms_p99']:.1f}"
        f" | {row['bound_ms']:.1f} | {row['token_ms'] / row['bound_ms']:.2f}"
        f" | {'kept' if row['is_kept'] else '**missed**'} |"
    )
    if "drafted_ratio" not in row:
        return words + " |" * 5
    low, high = row["drafted_ratio_range"]
    return (
        f"{words} {1000 / row['drafted_tokens_per_s']:.1f} | {row['drafted_ratio']:.2f} ({low:.2f}-{high:.2f})"
        f" | {row['tokens_per_run']:.2f} | {row['tokens_per_pass']:.2f} | {row['answers_differ']} |"
    )


def _rates(rows: Sequence[Mapping[str, Any]]) -> str:
    head = [
        "| swarm | activations | Mbit/s | loss % | RTT ms | streams | tokens/s in all (range)"
        " | times the fewest streams | ms between tokens | p99 | KB a token | cores: client | nodes | others |",
        "|" + "---|" * 14,
    ]
    return "\n".join([*head, *(_rate_row(row, _baseline(row, rows)) for row in rows)])


def _rate_row(row: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    network = f"| {_network(row)} | {row['streams']} | "
    if "tokens_per_s" not in row:
        return f"{network}{_why(row)} |" + " |" * 7
    least, most = row["tokens_per_s_range"]
    ratio = f"{row['tokens_per_s'] / baseline['tokens_per_s']:.1f}" if "tokens_per_s" in baseline else ""
    return (
        f"{network}{row['tokens_per_s']:.1f} ({least:.1f}-{most:.1f}{_failed(row)}) | {ratio} | {row['gap_ms']:.1f}"
        f" | {row['gap_ms_p99']:.1f} | {row['bytes_per_token'] / 1000:.1f} | {row['client_cores']:.2f}"
        f" | {row['nodes_cores']:.2f} | {row['other_cores']:.2f} |"
    )


def _baseline(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The cell with the fewest streams on the same network."""
    names = ("swarm", "activations", "mbit_per_s", "loss", "rtt_ms")
    return min((each for each in rows if all(each[n] == row[n] for n in names)), key=lambda each: int(each["streams"]))


def _network(row: Mapping[str, Any]) -> str:
    return f"{row['swarm']} | {row['activations']} | {row['mbit_per_s']:g} | {100 * row['loss']:g} | {row['rtt_ms']:g}"


def _echo(row: Mapping[str, Any]) -> str:
    """What the round trip is here: the relay's process waits for a core too."""
    return f"{row['echo_ms']:.2f}" if row["echo_ms"] is not None else ""


def _why(row: Mapping[str, Any]) -> str:
    return f"failed: {', '.join(row['failures'])}" if row["failures"] else NOT_MEASURED


def _failed(row: Mapping[str, Any]) -> str:
    return f", {len(row['failures'])} failed" if row["failures"] else ""
