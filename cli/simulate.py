"""`shoal simulate`: swarms that exist only here, to see what breaks them."""

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from shoal.cli.boundary import reporting_errors
from shoal.cli.options import parse_size, program
from shoal.cli.simulate_chaos import chaos
from shoal.cli.simulate_local import local
from shoal.cli.simulate_virtual import validate, virtual
from shoal.client.translate import _

if TYPE_CHECKING:
    from shoal.simulations.virtual.ledger import SoakResult


class ModesAsFlags(typer.core.TyperGroup):
    """Lets `shoal simulate --virtual 50` be said for `shoal simulate virtual 50`, and `--local` for `local`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See `TyperGroup.parse_args`."""
        if args and args[0] in ("--virtual", "--local"):
            args[0] = args[0].removeprefix("--")
        return super().parse_args(ctx, args)


simulate_app = typer.Typer(cls=ModesAsFlags, no_args_is_help=True, help="Try a swarm's bad days on this machine.")
simulate_app.command()(virtual)
simulate_app.command()(validate)
simulate_app.command()(local)
simulate_app.command()(chaos)


@simulate_app.callback()
def _simulate() -> None:
    """Try a swarm's bad days on this machine."""


def again(seed: int) -> str:
    """How to see a failure again."""
    return _("again: {command}").format(command=f"{program()} simulate seed {seed}")


def seeds_lines(result: "SoakResult") -> list[str]:
    """`shoal simulate seeds` for people."""
    ran = _("{seeds} seeds, {tokens} tokens, {calls} expert calls").format(
        seeds=result.num_seeds, tokens=result.num_tokens, calls=result.num_calls
    )
    broken = _("{number} seeds broke a promise").format(number=len(result.failed))
    lines = [f"{ran}: {broken if result.failed else _('every promise was kept')}"]
    for failure in result.failed:
        lines += [f"  {failure.problem}", f"    {again(failure.seed)}"]
    counts = sorted(result.faults.as_json().items(), key=lambda each: -each[1][0])
    if any(began for __, (began, _struck) in counts):
        lines.append(_("Faults, how many began, and how many frames, answers, calls, writes or nodes they met:"))
        lines += [f"  {name:<12}{began:>10}{struck:>12}" for name, (began, struck) in counts]
    return lines


@simulate_app.command()
def seeds(
    first: Annotated[int, typer.Option("--first", "--from", help="The first seed.", min=0)] = 0,
    count: Annotated[int, typer.Option(help="How many seeds.", min=1)] = 1000,
    jobs: Annotated[int, typer.Option(help="Processes; 0: one per core.", min=0)] = 0,
    resume: Annotated[Path | None, typer.Option(help="Keep what is done in this file, and go on from there.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run the real node and client code under a virtual clock with seeded faults; every token is checked."""
    with reporting_errors():
        from shoal.cli.seeds_progress import SeedsProgress
        from shoal.simulations.bench.machine import num_usable_cores
        from shoal.simulations.virtual.soak import soak

        signal.signal(signal.SIGINT, signal.default_int_handler)  # what is known is written first
        with SeedsProgress(count) as progress:
            result = soak(first, count, jobs or num_usable_cores(), progress, resume)
        print(json.dumps(result.as_json()) if as_json else "\n".join(seeds_lines(result)))
        if result.failed:
            raise SystemExit(1)


@simulate_app.command()
def seed(
    number: Annotated[int, typer.Argument(help="The seed.", min=0)],
    trace: Annotated[bool, typer.Option(help="Print every event with its virtual time.")] = False,
) -> None:
    """Run one seed again and tell what it is and what happened."""
    with reporting_errors():
        from shoal.simulations.virtual.run import Oracle, describe, draw_setup, run_seed
        from shoal.simulations.virtual.soak import demo_model_in_memory

        with demo_model_in_memory() as model:
            print("\n".join(describe(draw_setup(model, number))))
            outcome = run_seed(model, Oracle(model), number)
        if trace:
            print("\n".join(f"{time_s:10.6f}  {event}" for time_s, event in outcome.events))
        words = _("{tokens} tokens, {events} events, {virtual_s:.3f} virtual seconds, trace {trace}")
        print(
            words.format(
                tokens=outcome.num_tokens, events=outcome.num_events, virtual_s=outcome.virtual_s,
                trace=outcome.trace_hash,
            )
        )  # fmt: skip
        print(outcome.problem or _("every promise was kept"))
        if outcome.problem:
            raise SystemExit(1)


@simulate_app.command()
def recovery(
    runs: Annotated[int, typer.Option(help="Answers per fault, each with other delays.", min=1)] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What a death, a silence and slow calls cost a stream of tokens, in virtual time."""
    with reporting_errors():
        from dataclasses import asdict

        from shoal.simulations.virtual.recovery import FAULTS, measure_recovery, measure_tail
        from shoal.simulations.virtual.soak import demo_model_in_memory

        with demo_model_in_memory() as model:
            results = [measure_recovery(model, fault, runs) for fault in FAULTS]
            tail = measure_tail(model)
        if as_json:
            print(json.dumps({"recovery": [asdict(result) for result in results], "tail": asdict(tail)}))
            return
        from shoal.cli.recovery_report import recovery_lines

        print("\n".join(recovery_lines(results, tail)))


@simulate_app.command()
def placement(
    nodes: Annotated[int | None, typer.Option(help="Nodes. Default: a table of several swarms.", min=1)] = None,
    share: Annotated[str, typer.Option(help="What the median node gives, e.g. 4GB.")] = "4GB",
    hours: Annotated[float, typer.Option(help="Simulated hours.", min=0.1, max=1000)] = 24.0,
    exodus: Annotated[float, typer.Option(help="Share that leaves for good, half-way.", min=0, max=0.9)] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """How well volunteers that come and go cover DeepSeek-V3, beside a random choice of experts."""
    with reporting_errors():
        from dataclasses import asdict

        from shoal.simulations.placement import PlacementSettings, Policy, simulate_placement
        from shoal.simulations.placement_table import SWARMS, table_lines

        own = PlacementSettings(nodes or 0, parse_size(share) or 0, hours, exodus=exodus)
        rows = [
            (settings, simulate_placement(settings, policy))
            for settings in (SWARMS if nodes is None else (own,))
            for policy in Policy
        ]
        if as_json:
            print(json.dumps([asdict(settings) | asdict(result) for settings, result in rows]))
        else:
            print("\n".join(table_lines(rows)))
