"""One call of an expert that computes nothing, over loopback and encrypted: our exchange and hivemind's, in turns.

The same bytes go out; ours brings back twice as many, because a holder answers bf16 with fp32, or as many where bf16 is
asked for. Beside them the floor: as many bytes over blocking TLS (`tls_floor.py`), which no encrypted channel beats.
Run: python -m shoal.simulations.bench.peers.calls     (part of `make bench-peers`)
"""

import argparse
import json
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from shoal.protocol.dtypes import DType
from shoal.simulations.bench.machine import congestion_control, describe_machine, git_commit
from shoal.simulations.bench.peers.environments import environment
from shoal.simulations.bench.peers.members import HERE
from shoal.simulations.bench.peers.program import Program
from shoal.simulations.bench.wire import FLOOR

ROUNDS = 10
WARM_UP, CALLS = 20, 40


@dataclass(frozen=True, slots=True)
class Side:
    """One of ours. `reply_dtype`: 0 is f32."""

    name: str
    channel: str
    reply_dtype: int = 0


OURS = (
    Side("shoal, direct", "direct"),
    Side("shoal, direct, bf16", "direct", DType.BF16),
    Side("shoal, libp2p", "libp2p"),
    Side("shoal, libp2p, bf16", "libp2p", DType.BF16),
    Side("floor", FLOOR),
    Side("floor, bf16", FLOOR, DType.BF16),
)


@dataclass(frozen=True, slots=True)
class Payload:
    """What goes out: bf16[num_tokens, hidden] of ours, f32[1, floats] of hivemind's."""

    num_tokens: int
    hidden: int

    @property
    def num_bytes(self) -> int:
        return 2 * self.num_tokens * self.hidden

    @property
    def floats(self) -> int:
        return self.num_bytes // 4


PAYLOADS = (Payload(1, 7168), Payload(64, 8192))
"""14 KiB, a row of DeepSeek-V3; 1 MiB."""


def bench_calls(rounds: int = ROUNDS) -> dict[str, object]:
    """Median time of a call of each, and hivemind's as a multiple of ours in the same round; one JSON object.

    Raises:
        NotAvailable: a side does not run here.
    """
    rows = [row for payload in PAYLOADS for row in _compare(payload, rounds)]
    return {
        "machine": describe_machine(),
        "commit": git_commit(),
        "congestion_control": congestion_control(),
        "rows": rows,
    }


def table(result: dict[str, object]) -> str:
    """The result of `bench_calls` for people."""
    rows = result["rows"]
    if not isinstance(rows, list):
        raise TypeError("not a result of bench_calls")
    lines = [
        f"{result['machine']}, commit {result['commit']}, {result['congestion_control']}; medians of {CALLS} calls"
    ]
    lines.append(
        f"{'system':20} {'bytes out':>9} {'ms a call':>9}   hivemind takes … times as long (range over rounds)"
    )
    for row in rows:
        spread = f"{row['times']:.1f} ({row['times_min']:.1f}-{row['times_max']:.1f})"
        lines.append(f"{row['system']:20} {row['bytes']:9} {row['ms']:9.3f}   {spread}")
    return "\n".join(lines)


def _compare(payload: Payload, rounds: int) -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        here = environment(HERE, folder, folder)
        shape = (str(payload.num_tokens), str(payload.hidden))
        sides = {"hivemind": Program(here, "call_hivemind", str(payload.floats), folder=folder)}
        stack.enter_context(sides["hivemind"])
        for each in OURS:
            words = (each.channel, *shape, str(int(each.reply_dtype)))
            sides[each.name] = stack.enter_context(Program(here, "call_ours", *words, folder=folder))
        for side in sides.values():
            side.ask({"calls": WARM_UP})
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, side in sides.items():
                times[name].append(1000 * statistics.median(side.ask({"calls": CALLS})["seconds"]))
    return [_row(name, payload, times) for name in times]


def _row(name: str, payload: Payload, times: dict[str, list[float]]) -> dict[str, object]:
    multiples = [theirs / own for own, theirs in zip(times[name], times["hivemind"], strict=True)]
    return {
        "system": name,
        "bytes": payload.num_bytes,
        "ms": statistics.median(times[name]),
        "times": statistics.median(multiples),
        "times_min": min(multiples),
        "times_max": max(multiples),
    }


def main() -> None:
    """One table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    result = bench_calls(given.rounds)
    print(json.dumps(result) if given.json else table(result))


if __name__ == "__main__":
    main()
