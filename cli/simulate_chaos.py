"""`shoal simulate chaos`: bad days for real processes, and a table of what they cost."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.boundary import reporting_errors, run_coroutine
from shoal.cli.simulate_local import until_sigterm


def chaos(
    names: Annotated[list[str] | None, typer.Argument(help="Scenarios; none: all of them.")] = None,
    nodes: Annotated[int, typer.Option(help="Node processes.", min=6, max=64)] = 6,
    replicas: Annotated[int, typer.Option(help="Holders of every expert.", min=2)] = 2,
    rtt: Annotated[
        float, typer.Option(help="Round trip in milliseconds, where a scenario does not have its own.", min=1)
    ] = 50.0,
    repeats: Annotated[int, typer.Option(help="Times that a death or a stall is tried.", min=1)] = 5,
    seed: Annotated[int, typer.Option(help="Of victims, losses and the answer.", min=0)] = 0,
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint directory. Default: the embedded demonstration model.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; docs/schemas says which.")] = False,
) -> None:
    """Break a swarm of real processes in network namespaces, one bad day after the other; every answer is checked."""
    with reporting_errors():
        from shoal.simulations.fork_server import start_fork_server

        context = start_fork_server()  # it imports while we do
        import msgspec

        from shoal.simulations.bench.machine import describe_machine, git_commit
        from shoal.simulations.chaos.run import ChaosReport, ChaosSettings, ScenarioResult, check, run_scenario
        from shoal.simulations.chaos.scenarios import SCENARIOS, Effort
        from shoal.simulations.chaos.table import table
        from shoal.simulations.demo_model import MODEL_DIRECTORY

        settings = ChaosSettings(model or MODEL_DIRECTORY, nodes, replicas, rtt, Effort(repeats), seed)
        chosen = names or list(SCENARIOS)
        check(chosen, settings)

        async def show() -> None:
            load, results = os.getloadavg()[0], list[ScenarioResult]()
            for name in chosen:
                print(f"{name}: {SCENARIOS[name].title} …", file=sys.stderr, flush=True)
                results.append(await run_scenario(context, name, settings))
                said = "kept" if results[-1].is_kept else "BROKEN"
                print(f"{name}: {said} ({results[-1].elapsed_s:.0f} s)", file=sys.stderr, flush=True)
            ends = (load, os.getloadavg()[0])
            report = ChaosReport(git_commit(), describe_machine(), nodes, replicas, ends, tuple(results))
            print(msgspec.json.encode(report).decode() if as_json else table(report))
            if not all(result.is_kept for result in results):
                raise SystemExit(1)

        run_coroutine(lambda: until_sigterm(show()))
