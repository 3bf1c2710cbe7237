"""One look at the machine: is somebody at it, is it on battery, how hot is it, what does it draw.

What can not be known is None and never a guess. Blocking (files, and one short program); call it from a thread.
"""

import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from shoal.node.decision import Sensors

CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "acpitz")
"""hwmon's names of processors: Intel, AMD, ARM boards, and ACPI's zone. Disks and radios run hotter and say nothing."""

HWMON = Path("/sys/class/hwmon")
PROGRAM_TIMEOUT_S = 2.0

LOGIND = ("loginctl", "show-session", "--property=IdleHint", "--property=IdleSinceHint")
"""Of all sessions together. Desktops set it from X11 or Wayland input, logind itself from terminals."""

IOREG = ("ioreg", "-c", "IOHIDSystem", "-d", "4")
"""macOS: nanoseconds since the last input."""

RunProgram = Callable[[Sequence[str]], str | None]
"""What a program prints; None if it is not there or fails."""


class Temperature(NamedTuple):
    """As psutil's."""

    label: str
    current: float


def read_sensors(now_s: float, month_bytes: int, run: RunProgram | None = None) -> Sensors:
    """Read all of them. now_s: Unix time; month_bytes: the transfer meter's."""
    return Sensors(
        now_s=now_s,
        idle_s=idle_seconds(now_s, run or run_program),
        is_on_battery=is_on_battery(),
        temperature_c=hottest(_temperatures()),
        power_w=power_watts(HWMON),
        month_bytes=month_bytes,
    )


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
