"""What the first screen of `shoal chat` costs: seconds and CPU time until it stands, bytes painted, on a real pty.

    python -m shoal.simulations.bench.screen_bytes [--columns 132] [--lines 40]

A slow link pays for every byte: 40 kB are five seconds at 64 kbit/s. The chat is given an endpoint where nobody is, so
that what is measured is the program's start and not a swarm's.
"""

import argparse
import fcntl
import json
import os
import pty
import select
import statistics
import struct
import sys
import termios
import time
from dataclasses import asdict, dataclass

QUIET_S = 5.0
"""Nothing painted for so long: the screen stands. Between the terminal's set-up and the first paint lie the imports."""

LIMIT_S = 60.0

NOBODY = "http://127.0.0.1:9/v1"
"""The discard port: refused at once."""


@dataclass(frozen=True, slots=True)
class FirstScreen:
    """One start."""

    first_byte_s: float
    painted_s: float
    """Until the last byte before the terminal fell quiet."""
    num_bytes: int
    cpu_s: float
    """Processor time up to the last paint, of all the program's threads: other programs disturb it less."""


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far (Linux's /proc/PID/stat, fields 14 and 15)."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(columns: int, lines: int, plain: bool) -> FirstScreen:
    """Start the chat on a pty of this size and read until it is quiet."""
    started = time.perf_counter()
    pid, descriptor = pty.fork()
    if pid == 0:
        words = [sys.executable, "-m", "shoal.cli", "chat", "--api", NOBODY, *(["--plain"] if plain else [])]
        os.environ.update(TERM="xterm-256color", COLORTERM="truecolor")
        os.execv(sys.executable, words)
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    times: list[float] = []
    num_bytes, cpu_s = 0, 0.0
    while time.perf_counter() - started < LIMIT_S:
        ready, _, _ = select.select([descriptor], [], [], QUIET_S if times else LIMIT_S)
        try:
            painted = os.read(descriptor, 1 << 16) if ready else b""
        except OSError:  # the other end is closed: the program has ended
            painted = b""
        if not painted:
            break
        times.append(time.perf_counter() - started)
        num_bytes, cpu_s = num_bytes + len(painted), cpu_seconds(pid)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    os.close(descriptor)
    return FirstScreen(times[0] if times else 0.0, times[-1] if times else 0.0, num_bytes, cpu_s)


def main() -> None:
    """Print medians as one JSON object."""
    parser = argparse.ArgumentParser(description="What the first screen of shoal chat costs a terminal.")
    parser.add_argument("--columns", type=int, default=132)
    parser.add_argument("--lines", type=int, default=40)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--plain", action="store_true")
    options = parser.parse_args()
    runs = [asdict(measure(options.columns, options.lines, options.plain)) for _ in range(options.runs)]
    for name in runs[0]:
        values = [run[name] for run in runs]
        print(
            json.dumps(
                {"what": name, "median": statistics.median(values), "lowest": min(values), "highest": max(values)}
            )
        )


if __name__ == "__main__":
    main()
