"""What the scenarios came to, as one table of Markdown and what is to be said besides."""

import statistics
from collections.abc import Sequence

from shoal.simulations.chaos.run import ChaosReport, ScenarioResult, Times

HEAD = (
    "scenario", "RTT ms", "tokens", "lost", "wrong", "fail-overs", "faults", "recovery, RTTs: median, worst",
    "promised", "slow tokens a fault", "before ms p50/p99", "during", "after", "kept",
)  # fmt: skip


def table(report: ChaosReport) -> str:
    """All of it."""
    rows = [" | ".join(HEAD), " | ".join(["---"] * len(HEAD)), *(" | ".join(_row(each)) for each in report.scenarios)]
    said = [f"{each.name}: {words}" for each in report.scenarios for words in _said(each)]
    where = (
        f"{report.num_nodes} nodes, {report.replicas} replicas; commit {report.commit};"
        f" {report.machine['cpu']}, {report.machine['cores']} cores, {report.machine['kernel']};"
        f" load {report.load[0]:.1f} at the beginning, {report.load[1]:.1f} at the end"
    )
    return "\n".join([*(f"| {row} |" for row in rows), "", *said, where])


def _row(result: ScenarioResult) -> Sequence[str]:
    promised = "-" if result.promised_rtts is None else f"≤ {result.promised_rtts:.2f}"
    recovery = "-"
    if result.recovery_rtts:
        recovery = f"{statistics.median(result.recovery_rtts):.2f}, {max(result.recovery_rtts):.2f}"
    return (
        f"{result.name}: {result.title}", f"{result.rtt_ms:.0f}", str(result.num_tokens), str(result.lost),
        str(result.wrong), str(result.failovers), str(result.num_faults), recovery, promised,
        str(max(result.slow_tokens, default=0)), _pair(result.before), _pair(result.during), _pair(result.after),
        "yes" if result.is_kept else "NO",
    )  # fmt: skip


def _pair(times: Times) -> str:
    return f"{times.p50_ms:.0f}/{times.p99_ms:.0f}" if times.num_tokens else "-"


def _said(result: ScenarioResult) -> Sequence[str]:
    return (*result.notes, *([result.problem] if result.problem else []))
