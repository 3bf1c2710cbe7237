"""`make forecast`: every scenario in one Markdown table, and the pictures of docs/SIMULATE.md, in one run."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from shoal.simulations.forecast.compute import shipped_calibration
from shoal.simulations.forecast.plots import write_plots
from shoal.simulations.forecast.report import SimulationReport
from shoal.simulations.forecast.scenarios import SCENARIOS
from shoal.simulations.forecast.simulate import SimulationSettings, simulate

PICTURES = ("lab-speed", "lab-time", "metro-coverage")
"""That docs/SIMULATE.md shows; there they are called `simulate-…`."""

Column = Callable[[SimulationReport], str]


def table_lines(reports: Sequence[SimulationReport]) -> Iterator[str]:
    """A column for each scenario that can answer."""
    yield f"| | {' | '.join(report.scenario for report in reports)} |"
    yield f"|{' --- |' * (len(reports) + 1)}"
    for name, column in _ROWS.items():
        yield f"| {name} | {' | '.join(map(column, reports))} |"
    for place in range(max(len(report.what_if) for report in reports)):
        changes = [report.what_if[place] for report in reports]
        rates = (" / ".join(f"{rate:.2f}" for rate in change.tokens_per_s.values()) for change in changes)
        yield f"| if {', or '.join(dict.fromkeys(change.change for change in changes))} | {' | '.join(rates)} |"


def _streams(report: SimulationReport) -> str:
    return " / ".join(f"{row.tokens_per_s:.2f}" for row in report.streams)


def _pipeline(report: SimulationReport) -> str:
    pipeline = report.pipeline
    if pipeline is None or pipeline.tokens_per_s is None:
        return "none"
    return " / ".join(f"{rate:.1f}" for rate in pipeline.tokens_per_s.values())


_ROWS: dict[str, Column] = {
    "copies of all experts": lambda report: f"{report.memory.copies:.1f}",
    "GB a node (median)": lambda report: f"{report.memory.bytes_per_node_median / 1e9:.1f}",
    "tokens/s in all, 1 / 8 / 32 streams": _streams,
    "limit of one stream": lambda report: (
        f"{report.streams[0].limit} ({report.streams[0].shares[report.streams[0].limit]:.0%})"
    ),
    "holders a layer": lambda report: f"{report.streams[0].holders_per_layer:.1f}",
    "prompt of 256 tokens": lambda report: f"{report.prefill[0].time_s:.0f} s",
    "fewest replicas in 24 h": lambda report: f"{min(row.fewest_replicas for row in report.coverage)}",
    "layer pipeline, 1 / 8 / 32 streams": _pipeline,
}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, help="a folder for the pictures of docs/SIMULATE.md")
    folder: Path | None = parser.parse_args().pictures
    calibration = shipped_calibration()
    reports = [
        simulate(SimulationSettings(each), calibration, lambda what, done, total: None) for each in SCENARIOS.values()
    ]
    print("\n".join(table_lines(reports)))
    if folder is not None:
        for report in reports:
            for path in write_plots(report, folder):
                if path.stem in PICTURES:
                    path.rename(folder / f"simulate-{path.name}")
                else:
                    path.unlink()


if __name__ == "__main__":
    main()
