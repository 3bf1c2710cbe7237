"""The result of `rpc.py` as Markdown."""

from collections.abc import Mapping
from typing import Any, cast

MIB = 2**20


def table(result: Mapping[str, object]) -> str:
    """A row a system, network and number of streams; then memory, then what a killed machine did."""
    rows = cast(list[dict[str, Any]], result["rows"])
    head = [
        f"{result['machine']}, commit {result['commit']}, {result['congestion_control']}; {result['tokens']} tokens an"
        f" answer, {result['rounds']} rounds, {result['seconds']:.0f} s; one thread a process, fp32; llama.cpp's RPC is"
        " not encrypted, ours is",
        "",
        "| network | RTT ms | machines | streams | system | ms a token (range) | tokens/s in all"
        " | of llama.cpp's time (range) | streams with equal tokens |",
        "|" + "---|" * 9,
    ]
    machines = sorted({row["machines"] for row in rows})
    systems = list(dict.fromkeys(row["system"] for row in rows))
    trips = [
        f"round trips a token, {number} machines, {system}: {found:.1f}"
        for number in machines
        for system in systems
        if (found := round_trips(result, system, number)) is not None
    ]
    memory = cast(list[dict[str, Any]], result["memory"])
    killed = cast(list[dict[str, object]], result["killed"])
    return "\n".join([*head, *map(row_of, rows), "", *trips, *map(_memory, memory), "", *map(_killed, killed)])


def round_trips(result: Mapping[str, object], system: str, machines: int) -> float | None:
    """Round trips a token of one stream: the slope between the shortest and the longest round-trip time above none."""
    rows = cast(list[dict[str, Any]], result["rows"])
    mine = [row for row in rows if (row["system"], row["machines"], row["streams"]) == (system, machines, 1)]
    points = sorted((row["rtt_ms"], row["token_ms"]) for row in mine if row["rtt_ms"] > 0)
    if len(points) < 2:
        return None
    (low, fast), (high, slow) = points[0], points[-1]
    return float((slow - fast) / (high - low))


def row_of(row: Mapping[str, Any]) -> str:
    """One line of the table."""
    least, most = row["token_ms_range"]
    low, high = row["ratio_range"]
    return (
        f"| {row['network']} | {row['rtt_ms']:g} | {row['machines']} | {row['streams']} | {row['system']}"
        f" | {row['token_ms']:.1f} ({least:.1f}-{most:.1f}) | {row['tokens_per_s']:.1f}"
        f" | {row['ratio']:.2f} ({low:.2f}-{high:.2f}) | {row['equal_streams']} of {row['all_streams']} |"
    )


def _memory(row: Mapping[str, Any]) -> str:
    said = (f"{what} {_mib(row[name])}" for what, name in MEMORY)
    return f"memory, {row['machines']} machines, {row['network']}, MiB each: {'; '.join(said)}"


MEMORY = (
    ("llama.cpp's server", "their_process_bytes"),
    ("of that since it got its layers", "their_model_bytes"),
    ("our node", "our_process_bytes"),
)


def _mib(values: list[int]) -> str:
    return " ".join(f"{each / MIB:.0f}" for each in values)


def _killed(row: Mapping[str, object]) -> str:
    return "killed: " + ", ".join(f"{name} {value}" for name, value in row.items())
