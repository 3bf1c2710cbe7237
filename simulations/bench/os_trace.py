"""What the operating system did with some threads, moment by moment: ran them, ran itself for them, let them wait.

Linux's trace points, in an instance of their own that is gone afterwards (Documentation/trace/ftrace.rst): a thread
enters and leaves the kernel, is switched to and away from, is woken. Exact, where a process's own counts are not: many
kernels divide user and system time by where their ticks of 1 to 10 ms fell (CONFIG_TICK_CPU_ACCOUNTING). The clock is
Python's `perf_counter`. Needs root and a mounted tracefs. Page faults and interrupts count as the program's time.
"""

import os
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise
from pathlib import Path

TRACEFS = Path("/sys/kernel/tracing")
BUFFER_KB = 16 * 1024
"""Of each processor: a marked round of 500 exchanges fills a third."""

EVENTS = ("sched/sched_switch", "sched/sched_waking", "raw_syscalls/sys_enter", "raw_syscalls/sys_exit")

LINE = re.compile(r"^.*-(\d+) +\[\d+\] \S+ +(\d+\.\d+): (\w+): (.*)$")
SWITCH = re.compile(r"prev_pid=(\d+) .*prev_state=(\S+) ==> .*next_pid=(\d+)")
WOKEN = re.compile(r" pid=(\d+) ")


class State(IntEnum):
    """What a thread does; of two threads that one work passes through, the greater one is where the work is."""

    BLOCKED = 0
    """It waits for something."""
    WAITING = 1
    """It could run, and another does."""
    SYSTEM = 2
    """The operating system runs for it."""
    USER = 3
    """It runs."""


@dataclass(slots=True)
class _Thread:
    """A thread as the trace goes on, and its states so far: from each time on, the state beside it."""

    is_on: bool = True
    is_in_system: bool = False
    is_runnable: bool = True
    times: list[float] = field(default_factory=list)
    states: list[State] = field(default_factory=list)

    def note(self, at: float) -> None:
        """Something has changed."""
        if self.is_on:
            state = State.SYSTEM if self.is_in_system else State.USER
        else:
            state = State.WAITING if self.is_runnable else State.BLOCKED
        if not self.states or self.states[-1] is not state:
            self.times.append(at)
            self.states.append(state)


class OsTimes:
    """The states of all traced threads. Thread ids are the operating system's; seconds are `perf_counter`'s."""

    def __init__(self, lines: Iterable[str] = ()) -> None:
        """lines: of a trace, in text."""
        self._threads: defaultdict[int, _Thread] = defaultdict(_Thread)
        for line in lines:
            if (match := LINE.match(line)) is not None:
                tid, at, event, words = match.groups()
                self._take(int(tid), float(at), event, words)

    @property
    def tids(self) -> frozenset[int]:
        """Threads of which anything is known."""
        return frozenset(self._threads)

    def spent(self, tids: Sequence[int], start: float, end: float) -> tuple[float, float, float, float]:
        """Seconds of an interval by `State`, of a work that is where the first of these threads is that does anything:
        a thread is looked at only while those before it are blocked."""
        inside = sorted({start, end, *(at for tid in tids for at in self._changes(tid, start, end))})
        spent = [0.0, 0.0, 0.0, 0.0]
        for begins, ends in pairwise(inside):
            spent[next((state for tid in tids if (state := self._at(tid, begins))), State.BLOCKED)] += ends - begins
        return spent[0], spent[1], spent[2], spent[3]

    def _changes(self, tid: int, start: float, end: float) -> list[float]:
        times = self._threads[tid].times if tid in self._threads else []
        return times[bisect_right(times, start) : bisect_right(times, end)]

    def _at(self, tid: int, at: float) -> State:
        """Before anything is known of a thread it is blocked."""
        if tid not in self._threads:
            return State.BLOCKED
        thread = self._threads[tid]
        place = bisect_right(thread.times, at)
        return thread.states[place - 1] if place else State.BLOCKED

    def _take(self, tid: int, at: float, event: str, words: str) -> None:
        if event == "sched_switch" and (switch := SWITCH.search(words)) is not None:
            before, after = self._threads[int(switch[1])], self._threads[int(switch[3])]
            before.is_on, before.is_runnable = False, switch[2].startswith("R")
            before.note(at)
            after.is_on = after.is_runnable = True
            after.note(at)
        elif event == "sched_waking" and (woken := WOKEN.search(f" {words} ")) is not None:
            thread = self._threads[int(woken[1])]
            thread.is_on = thread.is_on and bool(thread.states)
            thread.is_runnable = True
            thread.note(at)
        elif event in ("sys_enter", "sys_exit"):
            thread = self._threads[tid]
            thread.is_on, thread.is_in_system = True, event == "sys_enter"
            thread.note(at)


def threads_of(pids: Iterable[int]) -> list[int]:
    """All threads of some processes."""
    return [int(path.name) for pid in pids for path in Path(f"/proc/{pid}/task").iterdir()]


def ran_and_waited_s(tids: Iterable[int]) -> tuple[float, float]:
    """Seconds that threads have run so far, and could have run while others did: the kernel's own sums, in nanoseconds
    (Documentation/scheduler/sched-stats.rst)."""
    ran = waited = 0
    for tid in tids:
        try:
            words = Path(f"/proc/{tid}/schedstat").read_text(encoding="ascii").split()
        except OSError:  # it has ended
            continue
        ran, waited = ran + int(words[0]), waited + int(words[1])
    return ran / 1e9, waited / 1e9


class Tracer:
    """An instance of the kernel's trace, of some threads and those that they make."""

    def __init__(self, instance: Path) -> None:
        self._instance = instance

    def start(self, tids: Iterable[int]) -> None:
        """Forget what was traced and trace these."""
        self._write("tracing_on", "0")
        self._write("trace", "")
        self._write("set_event_pid", " ".join(map(str, tids)))
        for event in EVENTS:
            self._write(f"events/{event}/enable", "1")
        self._write("tracing_on", "1")

    def stop(self) -> OsTimes:
        """What has happened since."""
        self._write("tracing_on", "0")
        for event in EVENTS:
            self._write(f"events/{event}/enable", "0")
        with (self._instance / "trace").open(encoding="ascii", errors="replace") as lines:
            return OsTimes(lines)

    def _write(self, name: str, value: str) -> None:
        (self._instance / name).write_text(value, encoding="ascii")


@contextmanager
def tracing() -> Iterator[Tracer]:
    """An own instance, gone afterwards.

    Raises:
        OSError: not root, or no tracefs here.
    """
    instance = TRACEFS / "instances" / f"shoal-{os.getpid()}"
    instance.mkdir(exist_ok=True)
    try:
        for name, value in (("trace_clock", "mono"), ("buffer_size_kb", str(BUFFER_KB)), ("options/event-fork", "1")):
            (instance / name).write_text(value, encoding="ascii")
        yield Tracer(instance)
    finally:
        instance.rmdir()
