"""One look at the machine: is somebody at it, what else runs, is it on battery or a metered line, how hot is it.

What can not be known is None and never a guess. Blocking (files, and short programs); call it from a thread. Only what
the settings ask for is looked at: an idle node is not to be felt.
"""

import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from shoal.node.guest.decision import Sensors
from shoal.node.guest.other_programs import OtherLoad, cpu_times, first_match, process_names
from shoal.node.settings import GuestSettings

CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "acpitz")
"""hwmon's names of processors: Intel, AMD, ARM boards, and ACPI's zone. Disks and radios run hotter and say nothing."""

HWMON = Path("/sys/class/hwmon")
PROGRAM_TIMEOUT_S = 2.0

LOGIND = ("loginctl", "show-session", "--property=IdleHint", "--property=IdleSinceHint")
"""Of all sessions together. Desktops set it from X11 or Wayland input, logind itself from terminals."""

METERED = (
    "busctl", "get-property", "org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager",
    "org.freedesktop.NetworkManager", "Metered",
)  # fmt: skip
"""Of the connection that traffic leaves by. NMMetered: 0 unknown, 1 yes, 2 no, 3 perhaps (a phone), 4 hardly."""

METERED_LOOK_S = 60.0
"""Between two questions to NetworkManager: people change networks seldom."""

IOREG = ("ioreg", "-c", "IOHIDSystem", "-d", "4")
"""macOS: nanoseconds since the last input."""

RunProgram = Callable[[Sequence[str]], str | None]
"""What a program prints; None if it is not there or fails."""


class Temperature(NamedTuple):
    """As psutil's."""

    label: str
    current: float


class MachineSensors:
    """Reads this machine as often as it is called; keeps what is too dear to ask for each time."""

    def __init__(self, settings: GuestSettings, run: RunProgram | None = None) -> None:
        self._settings = settings
        self._run = run or run_program
        self._other_load = OtherLoad(cpu_times)
        self._is_metered: bool | None = None
        self._metered_at_s = float("-inf")

    def __call__(self, now_s: float, month_bytes: int) -> Sensors:
        """now_s: Unix time; month_bytes: the transfer meter's."""
        settings = self._settings
        return Sensors(
            now_s=now_s,
            idle_s=idle_seconds(now_s, self._run) if settings.idle_only else None,
            is_on_battery=is_on_battery(),
            temperature_c=hottest(_temperatures()),
            power_w=power_watts(HWMON),
            is_metered=None if settings.on_metered else self._metered(now_s),
            program=first_match(settings.pause_when, process_names()) if settings.pause_when else None,
            other_load=None if settings.max_other_load is None else self._other_load(),
            month_bytes=month_bytes,
        )

    def _metered(self, now_s: float) -> bool | None:
        if not 0 <= now_s - self._metered_at_s < METERED_LOOK_S:
            self._is_metered, self._metered_at_s = is_metered(self._run), now_s
        return self._is_metered


def run_program(command: Sequence[str]) -> str | None:
    """Run a short program for what it prints."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def idle_seconds(now_s: float, run: RunProgram, platform: str = sys.platform) -> float | None:
    """Seconds since the last input at this machine, or None where nothing says so (no logind, a container)."""
    if platform == "darwin":
        since_ns = re.search(r'"HIDIdleTime" = (\d+)', run(IOREG) or "")
        return int(since_ns[1]) / 1e9 if since_ns else None
    if platform != "linux":
        return None
    said = run(LOGIND) or ""
    hint = re.search(r"^IdleHint=(yes|no)$", said, re.MULTILINE)
    since = re.search(r"^IdleSinceHint=(\d+)$", said, re.MULTILINE)
    if hint is None or since is None:
        return None
    return max(0.0, now_s - int(since[1]) / 1e6) if hint[1] == "yes" else 0.0


def is_metered(run: RunProgram) -> bool | None:
    """Whether NetworkManager calls the connection metered; None: it does not know, or is not there."""
    said = re.fullmatch(r"u (\d+)", (run(METERED) or "").strip())
    return {"1": True, "2": False, "3": True, "4": False}.get(said[1]) if said else None


def is_on_battery() -> bool | None:
    """Whether this machine runs on its battery; None: it has none."""
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return None if battery is None or battery.power_plugged is None else not battery.power_plugged


def hottest(found: Mapping[str, Sequence[Temperature]]) -> float | None:
    """The highest processor temperature, in degrees Celsius."""
    return max((each.current for name in CPU_SENSORS for each in found.get(name, ())), default=None)


def power_watts(hwmon: Path) -> float | None:
    """What all power sensors of hwmon draw together (microwatts in files), or None without any."""
    watts = []
    for device in sorted(hwmon.glob("hwmon*")):
        for kind in ("average", "input"):
            try:
                watts.append(int((device / f"power1_{kind}").read_text()) / 1e6)
                break
            except (OSError, ValueError):
                continue
    return sum(watts) if watts else None


def _temperatures() -> dict[str, list[Temperature]]:
    if not hasattr(psutil, "sensors_temperatures"):
        return {}
    return {
        name: [Temperature(each.label, each.current) for each in found]
        for name, found in psutil.sensors_temperatures().items()
    }
