"""Processor time of `--help` of every verb, beside an interpreter that does nothing, in the same run.

Interleaved, best and median of several rounds; the ratio is what can be compared between machines.
Run: python -m shoal.simulations.bench.startup
"""

import re
import resource
import statistics
import subprocess
import sys

ROUNDS = 5


def cpu_seconds(command: list[str]) -> float:
    """Processor time of one run: other programs on the machine disturb it less than wall time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _verbs() -> list[str]:
    """As the program lists them in its help; simulations may not import the command line."""
    said = subprocess.run([sys.executable, "-m", "shoal.cli", "--help"], capture_output=True, text=True, check=True)
    commands = said.stdout[said.stdout.index("Commands") :]
    return re.findall(r"^  ([a-z]+) ", commands, flags=re.MULTILINE)


def main() -> None:
    """Print best, median and ratio of each verb."""
    verbs = ["", *_verbs()]
    commands = {verb: [sys.executable, "-m", "shoal.cli", *([verb] if verb else []), "--help"] for verb in verbs}
    commands["python -c pass"] = [sys.executable, "-c", "pass"]
    taken: dict[str, list[float]] = {verb: [] for verb in commands}
    for _ in range(ROUNDS):
        for verb, command in commands.items():
            taken[verb].append(cpu_seconds(command))
    floor = min(taken["python -c pass"])
    for verb, times in taken.items():
        best, median = min(times) * 1000, statistics.median(times) * 1000
        ratio = min(times) / floor
        print(f"{verb or '(shoal)':<15} best {best:6.0f} ms  median {median:6.0f} ms  {ratio:5.1f} x python")


if __name__ == "__main__":
    main()
