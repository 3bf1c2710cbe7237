"""`shoal simulate --virtual N`: what a swarm of so many machines would give, by a cost model; no process is started."""

import json
from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.boundary import reporting_errors, run_coroutine
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


def validate(
    real: Annotated[
        bool, typer.Option("--real", help="Real processes in network namespaces and real time; needs root.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="With --real: fewer settings.")] = False,
    rounds: Annotated[int, typer.Option(help="With --real: how often each setting is measured.", min=1, max=20)] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What measured runs took and what the model says of them: under a virtual clock, or real; docs/SIMULATE.md."""
    with reporting_errors():
        if real:
            _validate_real(quick, rounds, as_json)
        else:
            _validate_virtual(as_json)


def _validate_virtual(as_json: bool) -> None:
    from shoal.cli.progress import StepBar
    from shoal.simulations.forecast import validate as validation

    with StepBar() as bar:
        rows = validation.validate_all(bar)
    if as_json:
        columns = ("setting", "measured_ms", "predicted_ms", "error")
        print(json.dumps({"rows": [{name: getattr(row, name) for name in columns} for row in rows]}))
    else:
        print(validation.table(rows))


def _validate_real(quick: bool, rounds: int, as_json: bool) -> None:
    from shoal.simulations.fork_server import start_fork_server

    context = start_fork_server()  # it imports while we do
    import msgspec

    from shoal.cli.progress import StepBar
    from shoal.simulations.forecast.real.networks import QUICK, SETTINGS
    from shoal.simulations.forecast.real.run import RealSettings, demo_model_for_forecasts, validate_real
    from shoal.simulations.forecast.real.verdict import report_lines

    model, settings = demo_model_for_forecasts(), RealSettings(QUICK if quick else SETTINGS, rounds)
    with StepBar() as bar:
        report = run_coroutine(lambda: validate_real(context, model, settings, bar))
    print(json.dumps(msgspec.to_builtins(report)) if as_json else "\n".join(report_lines(report)))
    if report.misses:
        raise SystemExit(1)
