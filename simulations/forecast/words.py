"""A report of `shoal simulate --virtual` for people, with its two pictures in characters."""

from collections.abc import Iterator, Mapping

from shoal.simulations.forecast.report import SimulationReport

BAR = 40
BLOCKS = " ▁▂▃▄▅▆▇█"
SHOWN_SHARE = 0.02
"""Parts of a token's time below this are left out."""


def report_lines(report: SimulationReport) -> Iterator[str]:
    """All of it."""
    memory = report.memory
    yield f"{report.scenario}: {report.about}; {report.nodes} nodes, RTT {report.rtt_ms_median:.1f} ms (median)"
    yield from _answer_lines(report)
    yield f"{report.model}, experts {report.weight_format}, trunk {report.trunk_format}; seed {report.seed}"
    yield (
        f"memory: experts {memory.experts_gb:.0f} GB, {memory.copies:.1f} copies in {memory.offered_gb:.0f} GB;"
        f" {memory.bytes_per_node_median / 1e9:.1f} GB a node (median), trunk {memory.trunk_gb:.1f} GB at its host"
    )
    yield from _speed_lines(report)
    yield from _coverage_lines(report)
    yield (
        f"simulated {report.speed.calls} expert calls in {report.speed.cpu_s:.2f} s of one core:"
        f" {report.speed.calls_per_s:,.0f} calls/s per core"
    )
    yield f"compute: {report.calibration}"


def _answer_lines(report: SimulationReport) -> Iterator[str]:
    """What this swarm would give, before all else."""
    if report.missing_experts:
        yield (
            f"THIS SWARM CANNOT ANSWER: {report.missing_experts} experts have no place. It has"
            f" {report.memory.copies:.2f} copies of the model and needs more nodes or memory."
        )
        return
    one, many = report.streams[0], report.streams[-1]
    complete = sum(row.covered == 1 for row in report.coverage) / len(report.coverage)
    yield (
        f"IT GIVES {one.tokens_per_s:.2f} tokens/s to one stream ({one.limit} limits it) and {many.tokens_per_s:.1f} in"
        f" all to {many.streams}; a prompt of {report.prefill[0].tokens} tokens takes {report.prefill[0].time_s:.0f} s;"
        f" every expert has a holder {complete:.0%} of {report.coverage[-1].hour:.0f} h."
    )
    pipeline = report.pipeline
    if pipeline is not None and pipeline.tokens_per_s is not None:
        rates = pipeline.tokens_per_s
        yield (
            f"A layer pipeline on the same machines would give {rates[one.streams]:.2f} and {rates[many.streams]:.1f}"
            " (calculated the same way)."
        )


def _speed_lines(report: SimulationReport) -> Iterator[str]:
    if not report.streams:
        return
    for row in report.streams:
        yield (
            f"{row.streams:3} streams: {row.tokens_per_s_each:6.2f} tokens/s each, {row.tokens_per_s:6.1f} in all,"
            f" {row.holders_per_layer:.1f} holders a layer; limited by {row.limit} ({row.shares[row.limit]:.0%})"
        )
    yield "where the time of one stream's token goes:"
    yield from share_lines(report.streams[0].shares)
    for prompt in report.prefill:
        yield f"prompt of {prompt.tokens} tokens: {prompt.time_s:.1f} s; limited by {prompt.limit}"
    if report.pipeline is not None:
        yield from _pipeline_lines(report)
    for change in report.what_if:
        rates = ", ".join(f"{rate:.2f} ({count})" for count, rate in change.tokens_per_s.items())
        yield f"what if {change.change}: tokens/s in all {rates}"
    if report.data is not None:
        data = report.data
        yield (
            f"data per 1,000 tokens at the trunk host: {data.trunk_up_mb_per_1000_tokens:,.0f} MB up,"
            f" {data.trunk_down_mb_per_1000_tokens:,.0f} MB down; to join, a node fetches"
            f" {data.node_download_gb_median:.1f} GB in {data.node_download_hours_median:.1f} h (medians)"
        )


def share_lines(shares: Mapping[str, float]) -> Iterator[str]:
    """A bar for each part of a token's time."""
    for name, share in sorted(shares.items(), key=lambda item: -item[1]):
        if share >= SHOWN_SHARE:
            yield f"  {name:17} {share:4.0%} {'█' * max(1, round(BAR * share))}"


def _pipeline_lines(report: SimulationReport) -> Iterator[str]:
    pipeline = report.pipeline
    if pipeline is None or pipeline.tokens_per_s is None or pipeline.tokens_per_s_petals is None:
        yield f"a layer pipeline on the same machines: {pipeline.reason if pipeline else 'not asked'}"
        return
    ours = ", ".join(f"{rate:.2f} ({count})" for count, rate in pipeline.tokens_per_s.items())
    theirs = ", ".join(f"{rate:.2f} ({count})" for count, rate in pipeline.tokens_per_s_petals.items())
    yield (
        f"a layer pipeline on {pipeline.machines} of the same machines (chains: {pipeline.chains}, hops in"
        f" each: {pipeline.hops}): tokens/s in all {ours}; with Petals' measured 7.5 ms a hop {theirs}"
    )


def _coverage_lines(report: SimulationReport) -> Iterator[str]:
    rows = report.coverage
    complete = sum(row.covered == 1 for row in rows) / len(rows)
    yield (
        f"coverage over {rows[-1].hour:.0f} h: least {min(row.covered for row in rows):.2%}, complete"
        f" {complete:.0%} of the time, fewest replicas {min(row.fewest_replicas for row in rows)}"
    )
    most = max(max(row.rarest_tenth for row in rows), 1.0)
    line = "".join(BLOCKS[round((len(BLOCKS) - 1) * row.rarest_tenth / most)] for row in rows)
    yield f"  replicas of the rarest tenth, hour by hour (full: {most:.1f}): {line}"
