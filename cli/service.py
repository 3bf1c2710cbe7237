"""`shoal service`: run the node whenever this user is logged in, by systemd or launchd."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.boundary import reporting_errors
from shoal.cli.options import JsonOption, NameOption
from shoal.client.translate import _

if TYPE_CHECKING:
    from shoal.node.service import ServiceStatus

service_app = typer.Typer(no_args_is_help=True, help="Run the node as a service of this user's (systemd, launchd).")


@service_app.command()
def install(
    name: NameOption = None,
    start: Annotated[bool, typer.Option(help="Enable and start it, too.")] = True,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="First run: take the defaults.")] = False,
) -> None:
    """Write the service, enable it and start it. Settings are those of the settings file."""
    with reporting_errors():
        from shoal.cli.first_run import first_run
        from shoal.node.service import launchd_plist, node_command, systemd_unit

        first_run(yes, is_share_given=False)
        path, command = _path(name or "node"), node_command(sys.executable, name or "node")
        path.parent.mkdir(parents=True, exist_ok=True)
        if sys.platform == "darwin":
            path.write_bytes(launchd_plist(command, name or "node", Path.home() / "Library" / "Logs"))
        else:
            path.write_text(systemd_unit(command, name or "node"), encoding="utf-8")
        print(_("wrote {path}").format(path=path))
        if start:
            _start(path, name or "node")
            print(
                _("started; at log-out it ends unless you run:")
                + f" loginctl enable-linger {os.environ.get('USER', '')}"
            )


@service_app.command()
def uninstall(name: NameOption = None) -> None:
    """Stop the service and remove it; settings, logs and caches stay."""
    with reporting_errors():
        from shoal.protocol.errors import InvalidRequest

        path = _path(name or "node")
        if not path.exists():
            raise InvalidRequest(f"there is no {path}; nothing to uninstall")
        _stop(path)
        path.unlink()
        print(_("removed {path}").format(path=path))


@service_app.command()
def status(name: NameOption = None, as_json: JsonOption = False) -> None:
    """Say whether the service is installed and runs; exits 3 if it does not run."""
    with reporting_errors():
        from shoal.node.service import ServiceStatus

        path = _path(name or "node")
        said = ServiceStatus(str(path), path.exists(), _is_running(path))
        print(json.dumps(asdict(said)) if as_json else _status_words(said).format(service=path.name))
        if not said.is_running:
            raise SystemExit(3)


def _status_words(said: "ServiceStatus") -> str:
    if said.is_running:
        return _("{service} runs")
    return _("{service} does not run") if said.is_installed else _("{service} is not installed")


def _path(name: str) -> Path:
    from shoal.node.service import launchd_label, service_name
    from shoal.protocol.net.control_socket import runtime_dir, socket_path

    socket_path(runtime_dir(), name)  # refuses what is no name before it becomes a file
    if sys.platform == "darwin":
        return Path.home() / "Library" / "LaunchAgents" / f"{launchd_label(name)}.plist"
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return config / "systemd" / "user" / f"{service_name(name)}.service"


def _start(path: Path, name: str) -> None:
    if sys.platform == "darwin":
        _must(["launchctl", "bootstrap", f"gui/{os.getuid()}", str(path)])
    else:
        _must(["systemctl", "--user", "daemon-reload"])
        _must(["systemctl", "--user", "enable", "--now", "--no-block", path.name])


def _stop(path: Path) -> None:
    """A service manager that is not there has nothing to stop."""
    if sys.platform == "darwin":
        _run(["launchctl", "bootout", f"gui/{os.getuid()}", str(path)])
    else:
        _run(["systemctl", "--user", "disable", "--now", path.name])


def _is_running(path: Path) -> bool:
    if sys.platform == "darwin":
        return _run(["launchctl", "print", f"gui/{os.getuid()}/{path.stem}"]) == ""
    return _run(["systemctl", "--user", "is-active", "--quiet", path.name]) == ""


def _must(command: Sequence[str]) -> None:
    from shoal.protocol.errors import ServiceManagerFailed

    if failure := _run(command):
        raise ServiceManagerFailed(" ".join(command), failure)


def _run(command: Sequence[str]) -> str:
    """Why a command of the service manager's failed; empty if it did not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"status {done.returncode}"
