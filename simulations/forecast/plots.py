"""The pictures of a report as PNG files, by matplotlib (extra `plots`; docs/adr/0023)."""

from pathlib import Path
from typing import Any

from shoal.protocol.errors import InvalidRequest
from shoal.simulations.forecast.report import SimulationReport
from shoal.simulations.forecast.words import SHOWN_SHARE

SIZE_INCHES = (8.0, 4.5)
DPI = 110


def write_plots(report: SimulationReport, folder: Path) -> list[Path]:
    """Write `<scenario>-speed.png`, `-time.png` and `-coverage.png`; returns what was written.

    Raises:
        InvalidRequest: matplotlib is not installed. OSError: the folder cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidRequest("plots need matplotlib: pip install 'shoal[plots]'") from error
    folder.mkdir(parents=True, exist_ok=True)
    drawings = {"coverage": _draw_coverage}
    if report.streams:
        drawings |= {"speed": _draw_speed, "time": _draw_time}
    written = []
    for name, draw in drawings.items():
        figure = Figure(figsize=SIZE_INCHES, layout="tight")  # no pyplot: nothing global, no display
        axes = figure.subplots()
        draw(report, axes)
        axes.set_title(f"{report.scenario}, {report.nodes} nodes, {report.model} {report.weight_format}")
        written.append(folder / f"{report.scenario}-{name}.png")
        figure.savefig(written[-1], dpi=DPI)
    return written


def _draw_speed(report: SimulationReport, axes: Any) -> None:
    counts = [row.streams for row in report.streams]
    axes.plot(counts, [row.tokens_per_s for row in report.streams], "o-", label="shoal")
    for change in report.what_if:
        axes.plot(list(change.tokens_per_s), list(change.tokens_per_s.values()), "--", label=f"if {change.change}")
    pipeline = report.pipeline
    if pipeline is not None and pipeline.tokens_per_s is not None:
        axes.plot(list(pipeline.tokens_per_s), list(pipeline.tokens_per_s.values()), "s:", label="layer pipeline")
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("streams")
    axes.set_ylabel("tokens per second in all")
    axes.legend(fontsize=8)


def _draw_time(report: SimulationReport, axes: Any) -> None:
    names = list(dict.fromkeys(name for row in report.streams for name, s in row.shares.items() if s >= SHOWN_SHARE))
    labels, lefts = [f"{row.streams}" for row in report.streams], [0.0] * len(report.streams)
    for name in names:
        widths = [row.shares.get(name, 0.0) * 100 for row in report.streams]
        axes.barh(labels, widths, left=lefts, label=name)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    axes.set_xlabel("share of a pass, %")
    axes.set_ylabel("streams")
    axes.legend(fontsize=8, loc="lower right")


def _draw_coverage(report: SimulationReport, axes: Any) -> None:
    hours = [row.hour for row in report.coverage]
    axes.plot(hours, [row.rarest_tenth for row in report.coverage], label="mean replicas of the rarest tenth")
    axes.plot(hours, [row.fewest_replicas for row in report.coverage], label="fewest replicas")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("hours")
    axes.set_ylabel("replicas")
    axes.legend(fontsize=8)
