"""The node as a service of the user's: what systemd and launchd read. Text only; `cli/service.py` installs it.

A user's service, not the system's: it needs no root, sees only this user's files, and ends at log-out unless the user
lingers.
"""

import plistlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LAUNCHD_LABEL = "org.shoal.node"

UNIT = """\
[Unit]
Description=shoal node {name}: holds experts of a language model for a swarm
Documentation=man:systemd.exec(5)
After=network-online.target
StartLimitIntervalSec=600
StartLimitBurst=5

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
# experts are read and checked before it is ready, which takes minutes for large shares
TimeoutStartSec=infinity
# SIGTERM drains within five seconds
TimeoutStopSec=30
KillMode=mixed
Restart=on-failure
RestartSec=10
# 2: wrong settings, 6: damaged weights; trying again mends neither
RestartPreventExitStatus=2 6
Nice=19
IOSchedulingClass=idle
OOMScoreAdjust=500
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native

[Install]
WantedBy=default.target
"""


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """What `shoal service status --json` prints."""

    path: str
    is_installed: bool
    is_running: bool


def service_name(name: str) -> str:
    """`shoal-node`, or `shoal-node-NAME` for another than the only node."""
    return "shoal-node" if name == "node" else f"shoal-node-{name}"


def node_command(python: str, name: str) -> list[str]:
    """The program that the service runs; its settings are in the settings file."""
    return [python, "-m", "shoal.cli", "node", "--name", name]


def systemd_unit(command: Sequence[str], name: str) -> str:
    """A systemd user unit."""
    return UNIT.format(name=name, command=" ".join(_quoted(word) for word in command))


def launchd_plist(command: Sequence[str], name: str, log_dir: Path) -> bytes:
    """A launchd agent: runs at log-in, again after a crash, at the lowest priority."""
    return plistlib.dumps(
        {
            "Label": launchd_label(name),
            "ProgramArguments": list(command),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 10,
            "ProcessType": "Background",
            "LowPriorityIO": True,
            "Nice": 19,
            "Umask": 0o077,
            "StandardErrorPath": str(log_dir / f"{service_name(name)}.stderr"),
        }
    )


def launchd_label(name: str) -> str:
    """The agent's name."""
    return LAUNCHD_LABEL if name == "node" else f"{LAUNCHD_LABEL}.{name}"


def _quoted(word: str) -> str:
    """A word of ExecStart=, for systemd.syntax(7): no specifiers, no variables, spaces kept."""
    plain = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{plain}"' if plain != word or " " in word else word
