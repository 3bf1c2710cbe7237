"""The table that `shoal simulate placement` prints: some swarms, each with every policy."""

from collections.abc import Iterator, Sequence

from shoal.simulations.placement import PlacementResult, PlacementSettings

GB = 10**9

SWARMS = (
    PlacementSettings(200, 4 * GB),
    PlacementSettings(200, 8 * GB, exodus=0.3),
    PlacementSettings(1000, 1 * GB),
    PlacementSettings(10_000, GB // 10),
    PlacementSettings(10_000, 1 * GB),
)
"""A school's worth of volunteers, twice; a thousand small ones; ten thousand that give four experts each, or forty."""

HEAD = (
    "policy          replicas: mean   min  median   covered: mean     least   complete    rare  popular"
    "   holders/layer   joins/h   moves/h    choice"
)
"""Replicas: at the end. Covered, complete (every expert has a holder), rare (below two): over all the time. Popular:
replicas of the tenth with most load, relative to the mean. Choice: mean time of one, on this machine."""


def table_lines(rows: Sequence[tuple[PlacementSettings, PlacementResult]]) -> Iterator[str]:
    """One block for each swarm, one line for each policy."""
    last = None
    for settings, result in rows:
        if settings != last:
            lost = f", {settings.exodus:.0%} of them leave for good half-way" if settings.exodus else ""
            share_gb = settings.share_bytes / GB
            yield f"{settings.num_nodes} nodes, median share {share_gb:g} GB, {settings.hours:g} h{lost}"
            yield HEAD
            last = settings
        yield (
            f"{result.policy:14}  {result.mean_replicas:14.1f} {result.min_replicas:5} {result.median_replicas:7.0f}"
            f" {result.coverage_mean:15.3%} {result.coverage_least:9.3%} {result.complete_share:10.1%}"
            f" {result.rare_share:7.2%} {result.popular_ratio:7.2f}x {result.holders_per_layer:15.2f}"
            f" {result.joins_per_h:9.0f} {result.moves_per_h:9.1f} {result.decision_ms:6.2f} ms"
        )
