"""`python -m shoal.simulations.seeding`: fifty nodes join at once; where their weights come from, as a table."""

import argparse
import sys
import time
from statistics import median

from shoal.simulations.bench.machine import git_commit
from shoal.simulations.seeding.run import SCENARIOS, Outcome, SeedingSettings, simulate

HEAD = "| scenario | from the hub | from peers | given in vain | last one full | median | last / ideal | whole |"
PROMISE = 1.2
"""Copies of the model that fifty newcomers may take from the hub."""


def main() -> int:
    """Run all scenarios with some seeds; 1 if a machine lacks a byte, or the hub gave too much."""
    parser = argparse.ArgumentParser(description="Newcomers that fill from each other, under a virtual clock.")
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(SCENARIOS), default=list(SCENARIOS))
    given = parser.parse_args()
    print(f"{given.nodes} nodes, {given.replicas} replicas, {given.seeds} seeds, commit {git_commit()}")
    print("copies of the model; hours of virtual time at uplinks of 5-100 Mbit/s; median of the seeds (range)\n")
    print(HEAD)
    print("|---" * HEAD.count(" | ") + "|---|")
    is_kept = True
    for name in given.only:
        scenario = SCENARIOS[name]
        started = time.perf_counter()
        settings = [SeedingSettings(given.nodes, given.replicas, seed=seed) for seed in range(given.seeds)]
        outcomes = [simulate(scenario, each) for each in settings]
        print(_row(outcomes), flush=True)
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
        is_kept &= all(each.is_whole for each in outcomes)
        is_kept &= not scenario.has_peers or all(each.hub_copies <= PROMISE for each in outcomes)
    return 0 if is_kept else 1


def _row(outcomes: list[Outcome]) -> str:
    def spread(values: list[float], digits: int = 2) -> str:
        low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
        return low if low == high else f"{median(values):.{digits}f} ({low}-{high})"

    cells = [
        outcomes[0].title,
        spread([each.hub_copies for each in outcomes]),
        spread([each.peer_copies for each in outcomes]),
        spread([each.given_in_vain_copies for each in outcomes]),
        spread([each.fill_s / 3600 for each in outcomes]) + " h",
        spread([each.median_fill_s / 3600 for each in outcomes]) + " h",
        spread([each.fill_s / each.ideal_s for each in outcomes]),
        "yes" if all(each.is_whole for each in outcomes) else "NO",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
