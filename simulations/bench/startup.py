"""How soon the program is there: `--help` of every verb, and the first screen of `shoal chat`.

Help: processor and wall time beside an interpreter that does nothing, in the same run, interleaved; the ratio is what
can be compared between machines. Screen: wall time from the start of the process to its first full line, on a terminal
of 80x24 of its own, with an empty home directory; it asks to join a swarm that is not there.
Run: python -m shoal.simulations.bench.startup
"""

import fcntl
import os
import pty
import re
import resource
import signal
import statistics
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from dataclasses import dataclass
from tempfile import TemporaryDirectory

ROUNDS = 7
FLOOR = "python -c pass"
BRAND = b"><> shoal"
"""Begins the first line of every screen."""
NOBODY = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWGC6TvWhfagifX6gvQ5VQxfkkYBvsPAJRsUqNWAJN2u7i"
"""A swarm that is not there: the first screen must not wait for it."""
TERMINAL = struct.pack("HHHH", 24, 80, 0, 0)


@dataclass(frozen=True, slots=True)
class Taken:
    """Of one run, in seconds. cpu_s: other programs on the machine disturb it less than wall time."""

    cpu_s: float
    wall_s: float


def measured(command: list[str]) -> Taken:
    """Times of one run of it."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    wall_s, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Taken(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall_s)


def first_screen_s(home: str) -> float:
    """Wall time until `shoal chat` shows itself.

    Raises:
        RuntimeError: it ended before.
    """
    environment = {**os.environ, "HOME": home, "TERM": "xterm-256color", "XDG_RUNTIME_DIR": home}
    command = [sys.executable, "-m", "shoal.cli", "chat", "--join", NOBODY]
    begun = time.perf_counter()
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, command, environment)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, TERMINAL)
    try:
        seen = b""
        while BRAND not in seen:
            seen += _read(terminal)
        return time.perf_counter() - begun
    finally:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        os.close(terminal)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError as error:  # EIO: nobody holds the other end any more
        raise RuntimeError("the chat ended before its first screen") from error


def _verbs() -> list[str]:
    """As the program lists them in its help; simulations may not import the command line."""
    said = subprocess.run([sys.executable, "-m", "shoal.cli", "--help"], capture_output=True, text=True, check=True)
    commands = said.stdout[said.stdout.index("Commands") :]
    return re.findall(r"^  ([a-z]+) ", commands, flags=re.MULTILINE)


def help_times() -> dict[str, list[Taken]]:
    """Times of every verb's help and of the empty program, by verb."""
    verbs = ["", *_verbs()]
    commands = {verb: [sys.executable, "-m", "shoal.cli", *([verb] if verb else []), "--help"] for verb in verbs}
    commands[FLOOR] = [sys.executable, "-c", "pass"]
    taken: dict[str, list[Taken]] = {verb: [] for verb in commands}
    for _ in range(ROUNDS):
        for verb, command in commands.items():
            taken[verb].append(measured(command))
    return taken


def table(taken: Mapping[str, list[Taken]]) -> str:
    """A line a verb: best and median, milliseconds."""
    floor = min(run.cpu_s for run in taken[FLOOR])
    lines = ["                   cpu best  median    wall best  median   cpu, x python"]
    for verb, runs in taken.items():
        cpu, wall = [run.cpu_s for run in runs], [run.wall_s for run in runs]
        figures = (min(cpu), statistics.median(cpu), min(wall), statistics.median(wall))
        cells = [f"{value * 1000:6.0f}" for value in figures]
        lines.append(
            f"{verb or '(shoal)':<20} {cells[0]}  {cells[1]}       {cells[2]}  {cells[3]}    {min(cpu) / floor:6.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Print both."""
    print(table(help_times()))
    with TemporaryDirectory() as home:
        screens = sorted(first_screen_s(home) for _ in range(ROUNDS))
    median = statistics.median(screens)
    print(f"first screen of shoal chat: median {median:.2f} s ({screens[0]:.2f} to {screens[-1]:.2f}, {ROUNDS} runs)")


if __name__ == "__main__":
    main()
