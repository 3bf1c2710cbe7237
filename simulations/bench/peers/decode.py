"""One process without a network: we and transformers decode the same small DeepSeek-V3 in fp32 on one thread, in turns.

Run: python -m shoal.simulations.bench.peers.decode     (part of `make bench-peers`)
"""

import argparse
import json
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from shoal.client.trunk.linear_maker import TrunkFormat
from shoal.simulations.bench.machine import describe_machine, git_commit
from shoal.simulations.bench.peers.environments import environment, importable
from shoal.simulations.bench.peers.members import HERE, TRANSFORMERS
from shoal.simulations.bench.peers.program import Answer, Program

NUM_TOKENS = 64
ROUNDS = 12
OURS = (TrunkFormat.DENSE, TrunkFormat.AS_PUBLISHED)
"""torch's linear maps, and our kernels' on the same fp32 weights."""


class Disagreement(Exception):
    """Two systems gave different tokens: their times are not of the same work."""


def bench_decode(environments: Path, rounds: int = ROUNDS) -> dict[str, object]:
    """Median time of a token of each, and ours as a ratio to transformers' of the same round; one JSON object.

    Raises:
        NotAvailable: a system does not run here. Disagreement.
    """
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "modules").mkdir()
        peers = environment(TRANSFORMERS, environments, importable(folder / "modules"))
        model = str(folder / "model")
        theirs = stack.enter_context(Program(peers, "decode_transformers", model, folder=folder))
        theirs.ask({"tokens": NUM_TOKENS})  # makes the model, which ours open
        here = environment(HERE, environments, folder)
        ours = {
            each.value: stack.enter_context(Program(here, "decode_ours", model, each.value, folder=folder))
            for each in OURS
        }
        times: dict[str, list[float]] = {name: [] for name in ("transformers", *ours)}
        for number in range(rounds + 1):
            answers = {
                name: each.ask({"tokens": NUM_TOKENS}) for name, each in {"transformers": theirs, **ours}.items()
            }
            _check(answers)
            if number:  # the first warms up
                for name, answer in answers.items():
                    times[name].append(1000 * statistics.median(answer["seconds"]))
    return {"machine": describe_machine(), "commit": git_commit(), "rows": [_row(name, times) for name in times]}


def table(result: dict[str, object]) -> str:
    """The result of `bench_decode` for people."""
    rows = result["rows"]
    if not isinstance(rows, list):
        raise TypeError("not a result of bench_decode")
    lines = [f"{result['machine']}, commit {result['commit']}; one thread, fp32, {NUM_TOKENS} tokens a round, medians"]
    lines.append(f"{'system':24} {'ms a token':>10}   ratio to transformers (range over rounds)")
    for row in rows:
        spread = f"{row['ratio']:.2f} ({row['ratio_min']:.2f}-{row['ratio_max']:.2f})"
        lines.append(f"{row['system']:24} {row['ms']:10.2f}   {spread}")
    return "\n".join(lines)


def _check(answers: dict[str, Answer]) -> None:
    expected = answers["transformers"]["ids"]
    for name, answer in answers.items():
        if answer["ids"] != expected:
            raise Disagreement(f"{name} decodes other tokens than transformers")


def _row(name: str, times: dict[str, list[float]]) -> dict[str, object]:
    ratios = [own / theirs for own, theirs in zip(times[name], times["transformers"], strict=True)]
    return {
        "system": name if name == "transformers" else f"shoal, {name}",
        "ms": statistics.median(times[name]),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def main() -> None:
    """One table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--environments", type=Path, default=Path(".venv-peers"), help="where transformers is installed"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    result = bench_decode(given.environments, given.rounds)
    print(json.dumps(result) if given.json else table(result))


if __name__ == "__main__":
    main()
