"""`shoal doctor`: is this machine fit to be a node, and what is to be done about it."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.boundary import reporting_errors, run_coroutine
from shoal.cli.options import JsonOption, NameOption
from shoal.client.translate import N_, _

if TYPE_CHECKING:
    from shoal.node.doctor import Outcome
    from shoal.node.settings import NodeSettings
    from shoal.protocol.control import Coverage

SIGNS = {"ok": N_("ok  "), "warn": N_("WARN"), "fail": N_("FAIL")}

LABELS = {
    "settings": N_("settings"), "clock": N_("clock"), "control": N_("control"), "key": N_("key"), "ports": N_("ports"),
    "network": N_("network"), "lan": "LAN", "disk": N_("disk"), "ram": N_("memory"), "model": N_("model"),
    "torch": "torch", "kernels": N_("kernels"), "libp2p": "libp2p", "gpu": "GPU", "idle": N_("idle"),
    "metered": N_("metered"), "tcp": "TCP", "congestion": N_("pacing"), "files": N_("files"),
    "node": N_("node"), "coverage": N_("coverage"),
}  # fmt: skip
"""What people read for a check's name; `--json` has the name."""


def doctor(
    model: Annotated[Path | None, typer.Option(help="Checkpoint directory, as for `shoal node`.")] = None,
    name: NameOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check clock, ports, network, disk, memory, torch, kernels, coverage; exits 1 if something fails."""
    with reporting_errors():

        async def show() -> None:
            outcomes = await _examine(name, model)
            if as_json:
                print(json.dumps({"findings": [asdict(outcome.finding()) for outcome in outcomes]}))
            else:
                print("\n".join(report(outcomes)))
            if any(outcome.level == "fail" for outcome in outcomes):
                raise SystemExit(1)

        run_coroutine(show)


def report(outcomes: "Sequence[Outcome]") -> list[str]:
    """The table that people read: sign, check, what was found; below it what to try."""
    width = max(len(_(label)) for label in LABELS.values())
    lines: list[str] = []
    for outcome in outcomes:
        found = _(outcome.said.words).format(**outcome.said.values)
        sign = _(SIGNS[outcome.level])
        lines.append(f"{sign} {_(LABELS[outcome.check]):<{width}} {found}")
        if outcome.try_command:
            lines.append(" " * (len(sign) + width + 2) + _("Try: {command}").format(command=outcome.try_command))
    return lines


async def _examine(name: str | None, model: Path | None) -> "tuple[Outcome, ...]":
    import time

    from shoal.cli.settings_file import settings_path
    from shoal.node.diagnosis import gather
    from shoal.node.doctor import examine
    from shoal.protocol.net.control_socket import DEFAULT_NAME, runtime_dir

    settings, error = _settings(model)
    is_running, coverage = await _coverage(name or DEFAULT_NAME)
    return examine(gather(settings, error, settings_path(), runtime_dir(), time.time(), is_running, coverage))


def _settings(model: Path | None) -> "tuple[NodeSettings, str]":
    """The node's settings, or the defaults and why those of the file can not be used."""
    from shoal.cli.settings_file import node_settings, settings_path
    from shoal.cli.settings_layers import read_node_table
    from shoal.protocol.errors import InvalidRequest
    from shoal.simulations.demo_model import MODEL_DIRECTORY

    base: dict[str, object] = {"model": str(model or MODEL_DIRECTORY)}
    try:
        return node_settings({**base, **read_node_table(settings_path(), os.environ)}, {"model": model}, {}), ""
    except InvalidRequest as error:
        return node_settings(base, {}, {}), str(error)


async def _coverage(name: str) -> "tuple[bool, Coverage | None]":
    """Whether a node runs, and what it says of its swarm."""
    from shoal.protocol.control import Coverage, GetCoverage
    from shoal.protocol.errors import NodeNotRunning, ShoalError
    from shoal.protocol.net.control_socket import ask, runtime_dir

    try:
        said = await ask(runtime_dir(), name, GetCoverage())
    except NodeNotRunning:
        return False, None
    except ShoalError as error:
        print("shoal: " + _("the node did not say its coverage: {error}").format(error=error), file=sys.stderr)
        return True, None
    return True, said if isinstance(said, Coverage) else None
