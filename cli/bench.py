"""`shoal bench`: measurements that anyone can repeat."""

import json
from typing import Annotated

import typer

from shoal.cli.boundary import reporting_errors, run_coroutine

bench_app = typer.Typer(no_args_is_help=True, help="Measure this machine.")


@bench_app.callback()
def _bench() -> None:
    """Measure this machine."""


@bench_app.command()
def wire(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    exchanges: Annotated[int, typer.Option(help="Exchanges per size and channel.", min=10)] = 1000,
) -> None:
    """What an exchange costs on loopback beyond the kernel's time: both channels, several sizes."""
    with reporting_errors():
        from shoal.simulations.bench.wire import bench_wire, table

        async def measure() -> None:
            result = await bench_wire(num_exchanges=exchanges)
            print(json.dumps(result) if as_json else table(result))

        run_coroutine(measure)
