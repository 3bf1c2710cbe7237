"""The command `shoal`: its verbs, and the one place where errors become exit statuses.

Exit statuses: 0 ok · 1 error · 2 usage · 3 no node runs here · 4 nobody holds an expert · 5 a peer refused or broke the
rules · 6 weights are not what they should be · 7 a resource limit · 130 Ctrl-C. Heavy imports wait inside the verbs, so
that `--help` is quick.
"""

import os
import sys
from typing import Annotated

import typer

from shoal.cli.bench import bench_app
from shoal.cli.boundary import reporting_errors
from shoal.cli.chat import chat
from shoal.cli.config import config_app
from shoal.cli.control import coverage, logs, pause, peers, resume, status, stop
from shoal.cli.demo import demo
from shoal.cli.doctor import doctor
from shoal.cli.idle_threads import let_idle_threads_sleep
from shoal.cli.invite import invite, join
from shoal.cli.language import known_language
from shoal.cli.manifest import manifest_app
from shoal.cli.models import models_app
from shoal.cli.node import node
from shoal.cli.plan import plan
from shoal.cli.run import run
from shoal.cli.serve import serve
from shoal.cli.service import service_app
from shoal.cli.simulate import simulate_app
from shoal.cli.version import version

CLIENT_VERBS = ("run", "chat", "serve")
"""Verbs whose flags have defaults in `[client]`, and `serve` in `[serve]`."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich costs as much time as all else, and boxes are noise to a screen reader
    help="Run DeepSeek-class Mixture-of-Experts models on many small machines.",
)


@app.callback()
def _shoal(
    context: typer.Context,
    lang: Annotated[
        str | None,
        typer.Option("--lang", help="Language: en, es, fr, pt_BR, sw. Default: the system's.", callback=known_language),
    ] = None,
) -> None:
    """Before any verb; `language.py` has taken the language already. Flags' defaults come from settings, if any."""
    verb = context.invoked_subcommand
    if verb != "bench":  # which says so itself
        let_idle_threads_sleep(os.environ)
    if verb in CLIENT_VERBS and "--help" not in sys.argv:
        with reporting_errors():
            from shoal.cli.settings_file import settings_path
            from shoal.cli.settings_layers import flag_defaults

            context.default_map = {verb: flag_defaults(verb, settings_path(), os.environ)}


app.command()(demo)
app.command()(chat)
app.command()(run)
app.command()(node)
app.command()(serve)
app.command()(invite)
app.command()(join)
for verb in (status, pause, resume, stop, peers, coverage, logs, doctor):
    app.command()(verb)
app.command()(plan)
app.command()(version)
app.add_typer(bench_app, name="bench")
app.add_typer(config_app, name="config")
app.add_typer(manifest_app, name="manifest")
app.add_typer(models_app, name="models")
app.add_typer(service_app, name="service")
app.add_typer(simulate_app, name="simulate")
