"""What else this machine runs: programs that the owner gives way to, and how busy others keep the processors.

Stateful, because a load is a difference between two looks. Blocking: a list of processes takes some milliseconds.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import psutil


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds of all processors together since some beginning: all there were, those that were busy, and ours."""

    total_s: float
    busy_s: float
    own_s: float


class OtherLoad:
    """The share of the processors that others used since the look before; our own work does not count as theirs."""

    def __init__(self, times: Callable[[], CpuTimes]) -> None:
        self._times = times
        self._before: CpuTimes | None = None
        self._load: float | None = None

    def __call__(self) -> float | None:
        """0 to 1; None at the first look, and where nothing has passed since."""
        now, before = self._times(), self._before
        if before is None or (total_s := now.total_s - before.total_s) <= 0:
            self._before = self._before or now
            return self._load
        others_s = (now.busy_s - before.busy_s) - (now.own_s - before.own_s)
        self._before, self._load = now, min(1.0, max(0.0, others_s / total_s))
        return self._load


def cpu_times() -> CpuTimes:
    """By psutil. Ours: this process, and its children (p2pd)."""
    all_times = psutil.cpu_times()
    total_s = sum(all_times) - getattr(all_times, "guest", 0.0) - getattr(all_times, "guest_nice", 0.0)  # in user, nice
    return CpuTimes(total_s, total_s - all_times.idle - getattr(all_times, "iowait", 0.0), _own_s())


def _own_s() -> float:
    process, own_s = psutil.Process(), 0.0
    for each in (process, *process.children(recursive=True)):
        try:
            used = each.cpu_times()
        except psutil.Error:  # a child that has just ended
            continue
        own_s += used.user + used.system
    return own_s


def process_names() -> list[str]:
    """The names of all programs that run, as the system has them: `firefox`, `game.exe`."""
    return [str(process.info["name"] or "") for process in psutil.process_iter(["name"])]


def first_match(patterns: Sequence[str], names: Iterable[str]) -> str | None:
    """The first of some programs that a pattern names: `game.exe`, `steam_app_*`; case does not matter."""
    wanted = [pattern.lower() for pattern in patterns]
    return next((name for name in names if any(fnmatchcase(name.lower(), pattern) for pattern in wanted)), None)
