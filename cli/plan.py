"""`shoal plan`: what these machines would give with this model, beforehand; starts no node and sends no prompt."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.boundary import reporting_errors, run_coroutine
from shoal.cli.options import JsonOption, TrunkFormatOption, parse_ids

if TYPE_CHECKING:
    from shoal.simulations.forecast.plan import PlanSettings

DEEPSEEK = "deepseek-v3.1"


def plan(
    model: Annotated[str, typer.Option(help="Checkpoint directory, or deepseek-v3.1.")] = DEEPSEEK,
    peers: Annotated[Path | None, typer.Option(help="A file of machines (JSON; docs/SIMULATE.md says how).")] = None,
    join: Annotated[
        list[str] | None, typer.Option(help="Invite of a running swarm whose holders are the machines; repeatable.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Format of the experts, e.g. int4_g128. Default: as published.")
    ] = None,
    trunk_format: Annotated[
        TrunkFormatOption, typer.Option(help="How the trunk's linears are held.")
    ] = TrunkFormatOption.AS_PUBLISHED,
    streams: Annotated[str, typer.Option(help="Answers at a time, e.g. 1,8,32.")] = "1,8,32",
    up: Annotated[float | None, typer.Option(help="This machine's uplink in Mbit/s. Default: the file's.")] = None,
    down: Annotated[float | None, typer.Option(help="Its downlink in Mbit/s. Default: the file's.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="A file of `shoal bench calibrate`. Default: the shipped one.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Forecast tokens per second with these machines, what limits them, what one more would change; starts nothing."""
    with reporting_errors():
        import msgspec

        from shoal.simulations.forecast.compute import read_calibration
        from shoal.simulations.forecast.plan import make_plan, plan_lines
        from shoal.simulations.forecast.plan_inputs import PlanWords, from_file, from_swarm

        counts = parse_ids(streams) or []
        if (peers is None) == (not join):
            raise typer.BadParameter("name the machines: --peers FILE, or --join INVITE")
        if not counts or not 1 <= min(counts) <= max(counts) <= 256:
            raise typer.BadParameter("streams are numbers in 1..256, e.g. 1,8,32")
        if not all(each is None or each > 0 for each in (up, down)):
            raise typer.BadParameter("--up and --down are rates above 0, in Mbit/s")
        words = PlanWords(
            None if model == DEEPSEEK else Path(model), weights, trunk_format.value, tuple(counts),
            read_calibration(calibration), up, down,
        )  # fmt: skip

        def show(settings: "PlanSettings") -> None:
            report = make_plan(settings)
            print(json.dumps(msgspec.to_builtins(report)) if as_json else "\n".join(plan_lines(report)))

        async def ask() -> None:
            show(await from_swarm(words, tuple(join or ())))

        if peers is not None:
            show(from_file(words, peers))
        else:
            run_coroutine(ask)
