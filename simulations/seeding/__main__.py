"""`python -m shoal.simulations.seeding`: fifty nodes join at once; where their weights come from, as a table."""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median

from shoal.simulations.bench.machine import git_commit
from shoal.simulations.rehearsal.__main__ import put_table
from shoal.simulations.seeding.run import MODEL, SCENARIOS, Outcome, SeedingSettings, simulate

HEAD = (
    "| scenario | from the hub | from peers | given in vain | last one full | median | last / sum of uplinks"
    " | last / limit | whole |"
)
PROMISE = 1.2
"""Copies of the model that fifty newcomers may take from the hub."""


def main() -> int:
    """Run all scenarios with some seeds; 1 if a machine lacks a byte, or the hub gave too much."""
    parser = argparse.ArgumentParser(description="Newcomers that fill from each other, under a virtual clock.")
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--experts", type=int, default=MODEL.num_layers * MODEL.num_experts, help="in layers of 256")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="seeds at a time, a process each")
    parser.add_argument("--only", nargs="*", choices=list(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--timeline", action="store_true", help="print how busy the lines were, of the first seed")
    parser.add_argument("--into", type=Path, help="a page to write the table into")
    given = parser.parse_args()
    num_layers = -(-given.experts // 256)
    model = replace(MODEL, num_layers=num_layers, num_experts=given.experts // num_layers)
    date = time.strftime("%Y-%m-%d", time.gmtime())
    lines = [
        f"{date}, commit {git_commit()}: {given.nodes} nodes, {given.replicas} replicas of"
        f" {model.num_layers * model.num_experts} experts, {given.seeds} seeds. Copies of the model; seconds of virtual"
        " time; median of the seeds (range).",
        "",
        HEAD,
        "|---" * (HEAD.count("|") - 1) + "|",
    ]
    print("\n".join(lines), flush=True)
    is_kept = True
    for name in given.only:
        started = time.perf_counter()
        settings = [SeedingSettings(given.nodes, given.replicas, model, seed) for seed in range(given.seeds)]
        outcomes = _simulate_all(name, settings, given.jobs)
        lines.append(_row(outcomes))
        print(lines[-1], flush=True)
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
        if given.timeline:
            print(_timeline(outcomes[0]), file=sys.stderr)
        is_kept &= all(each.is_whole for each in outcomes)
        is_kept &= not SCENARIOS[name].has_peers or all(each.hub_copies <= PROMISE for each in outcomes)
    if given.into is not None:
        put_table(given.into, "\n".join(lines) + "\n")
    return 0 if is_kept else 1


def _simulate_all(name: str, settings: Sequence[SeedingSettings], num_jobs: int) -> list[Outcome]:
    """One scenario with all seeds; each has a clock and a process of its own, and no result depends on the others."""
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(num_jobs, len(settings)), mp_context=spawning) as pool:
        return list(pool.map(simulate, [SCENARIOS[name]] * len(settings), settings))


def _row(outcomes: list[Outcome]) -> str:
    def spread(values: list[float], digits: int = 2) -> str:
        low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
        return low if low == high else f"{median(values):.{digits}f} ({low}-{high})"

    has_peers = any(each.limits.uplinks_s for each in outcomes)
    cells = [
        outcomes[0].title,
        spread([each.hub_copies for each in outcomes]),
        spread([each.peer_copies for each in outcomes]),
        spread([each.given_in_vain_copies for each in outcomes]),
        spread([each.fill_s for each in outcomes], 0) + " s",
        spread([each.median_fill_s for each in outcomes], 0) + " s",
        spread([each.fill_s / each.limits.uplinks_s for each in outcomes]) if has_peers else "",
        spread([each.fill_s / each.limits.least_s for each in outcomes]),
        "yes" if all(each.is_whole for each in outcomes) else "NO",
    ]
    return "| " + " | ".join(cells) + " |"


def _timeline(outcome: Outcome) -> str:
    rows = [f"{at.begin_s:6.0f} s  up {at.up:4.0%}  down {at.down:4.0%}  full {at.num_full}" for at in outcome.timeline]
    limits = outcome.limits
    return "\n".join([*rows, f"limits: uplinks {limits.uplinks_s:.0f} s, downlinks {limits.downlinks_s:.0f} s"])


if __name__ == "__main__":
    sys.exit(main())
