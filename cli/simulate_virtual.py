"""`shoal simulate --virtual N`: what a swarm of so many machines would give, by a cost model; no process is started."""

import json
from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.boundary import reporting_errors
from shoal.cli.options import JsonOption


def virtual(
    nodes: Annotated[int | None, typer.Argument(help="Nodes, up to 10000. Default: the scenario's.", min=1)] = None,
    scenario: Annotated[
        str, typer.Option(help="lab, metro, country, continent or three-labs; docs/SIMULATE.md describes them.")
    ] = "lab",
    hours: Annotated[int, typer.Option(help="Simulated hours of coming and going.", min=1, max=1000)] = 24,
    stay: Annotated[
        str | None, typer.Option(help="How long nodes stay: stable, casual, anchor, forever. Default: the scenario's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed draws other machines.", min=0)] = 0,
    calibration: Annotated[
        Path | None, typer.Option(help="A file of `shoal bench calibrate`. Default: the shipped one.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="A folder for pictures (PNG); needs matplotlib.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What a swarm of so many machines would give: speed, what limits it, coverage over time, memory and data."""
    with reporting_errors():
        from dataclasses import replace

        import msgspec

        from shoal.cli.progress import StepBar
        from shoal.simulations.forecast.churn import Lifetimes
        from shoal.simulations.forecast.compute import read_calibration
        from shoal.simulations.forecast.plots import write_plots
        from shoal.simulations.forecast.scenarios import scenario_named
        from shoal.simulations.forecast.simulate import SimulationSettings, simulate
        from shoal.simulations.forecast.words import report_lines

        chosen = scenario_named(scenario, nodes)
        if stay is not None:
            if stay not in list(Lifetimes):
                raise typer.BadParameter(f"{stay!r} is none of {', '.join(Lifetimes)}")
            chosen = replace(chosen, lifetimes=Lifetimes(stay))
        with StepBar() as bar:
            report = simulate(SimulationSettings(chosen, seed, hours), read_calibration(calibration), bar)
        print(json.dumps(msgspec.to_builtins(report)) if as_json else "\n".join(report_lines(report)))
        for path in write_plots(report, plots) if plots else ():
            if not as_json:
                print(path)


def validate(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """What measured runs took and what the model says of them, under a virtual clock; docs/SIMULATE.md."""
    with reporting_errors():
        from shoal.cli.progress import StepBar
        from shoal.simulations.forecast import validate as validation

        with StepBar() as bar:
            rows = validation.validate_all(bar)
        if as_json:
            columns = ("setting", "measured_ms", "predicted_ms", "error")
            print(json.dumps({"rows": [{name: getattr(row, name) for name in columns} for row in rows]}))
        else:
            print(validation.table(rows))
