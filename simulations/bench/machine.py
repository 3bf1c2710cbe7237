"""What a measurement was made on: every benchmark prints it beside its numbers. Off Linux it knows less and says so."""

import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.protocol.net.tcp import read_tcp_kernel, unpaced_control

UNKNOWN = "unknown"


def describe_machine() -> dict[str, str | int]:
    """Processor, cores we may use, kernel, Python, and what TCP is like, which decides every figure of a network."""
    return {
        "cpu": _cpu_model(),
        "cores": num_usable_cores(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "tcp": describe_tcp(),
    }


def describe_tcp() -> str:
    """The congestion control that our sockets choose, the kernel's own where that is another (libp2p has it), and
    whether windows restart after idle moments."""
    kernel, own = read_tcp_kernel(), unpaced_control() or UNKNOWN
    elsewhere = f", {kernel.congestion_control} elsewhere" if kernel.congestion_control not in ("", own) else ""
    return f"{own}{elsewhere}{', slow start after idle' if kernel.restarts_after_idle else ''}"


def num_usable_cores() -> int:
    """Cores that this process may run on, which containers make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def git_commit() -> str:
    """The commit of the checkout that this file is in, `+` if it has changes; `unknown` outside of one."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return f"{commit}+" if _git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN


def congestion_control() -> str:
    """The kernel's TCP congestion control: BBR makes a 14 KiB exchange cost 1.6 RTT where reno costs 1.0."""
    return read_tcp_kernel().congestion_control or UNKNOWN


def has_idle_restart() -> bool:
    """True if the kernel shrinks a connection's window after an idle moment: 28 KiB then cost 3 RTT instead of 1."""
    return bool(read_tcp_kernel().restarts_after_idle)


@contextmanager
def peak_memory_since() -> Iterator[Callable[[], int]]:
    """Yields a function: the most memory this process has held since, in bytes (resident); 0 off Linux."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM (proc(5))
    except OSError:
        yield lambda: 0
        return

    def peak_bytes() -> int:
        line = next(line for line in _read("/proc/self/status").splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])

    yield peak_bytes


def _git(*arguments: str) -> str:
    folder = Path(__file__).resolve().parent
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _cpu_model() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or UNKNOWN


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return UNKNOWN
