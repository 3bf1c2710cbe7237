"""A flame graph of this process's Python threads: samples of their stacks, and a picture that needs nothing else.

A thread looks at all stacks a thousand times a second (`sys._current_frames`), whenever it gets the interpreter's lock:
C code that holds it shows as the function that called it, and what runs without it is seen as well. Sampling costs a
few percent; no figure is taken from samples. The picture is one of Brendan Gregg's flame graphs (ACM Queue 14(2),
2016): width is the share of samples, height the depth of calls; threads that wait are left out.
"""

import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import PurePath
from types import FrameType

PERIOD_S = 0.001
MAX_DEPTH = 60
MIN_SHARE = 0.002
"""Narrower boxes are left out: the picture stays below 100 KB."""

WIDTH, ROW, FONT = 1200, 16, 11
"""Pixels."""

CHARACTER = 6.5
"""Pixels of one, about."""

WAITING = frozenset({"select", "wait", "_work", "get", "_recv", "_recv_bytes", "poll", "accept", "readline", "_worker"})
"""Functions at the top of a stack that waits: loops, queues, pipes."""

COLOURS = {"client": "#e8a33d", "protocol": "#6fa8dc", "experts": "#8fbf6a", "torch": "#c27ba0", "asyncio": "#b7b7b7"}
OTHER_COLOUR = "#d9d2c3"

Stack = tuple[str, ...]
"""Functions, the outermost first: `file:function`."""


@dataclass(slots=True)
class Stacks:
    """How often each stack was seen."""

    counts: Counter[Stack] = field(default_factory=Counter)

    @property
    def num_samples(self) -> int:
        return sum(self.counts.values())

    def folded(self) -> str:
        """A line for each, as other tools read them."""
        return "".join(f"{';'.join(stack)} {count}\n" for stack, count in sorted(self.counts.items()))


class Sampler:
    """Looks at the stacks of this process; the last that it saw are in `stacks`."""

    def __init__(self) -> None:
        self.stacks = Stacks()

    @contextmanager
    def sampling(self) -> Iterator[Stacks]:
        """Sample inside the `with`."""
        self.stacks, ended = Stacks(), threading.Event()
        _look(self.stacks)  # at whoever begins: there is one sample at least
        thread = threading.Thread(target=_sample, args=(self.stacks, ended), name="flame", daemon=True)
        thread.start()
        try:
            yield self.stacks
        finally:
            ended.set()
            thread.join()


def _sample(stacks: Stacks, ended: threading.Event) -> None:
    while not ended.wait(PERIOD_S):
        _look(stacks, threading.get_ident())


def _look(stacks: Stacks, unseen: int | None = None) -> None:
    for thread, frame in sys._current_frames().items():
        if thread != unseen and (stack := stack_of(frame)) and stack[-1].rpartition(":")[2] not in WAITING:
            stacks.counts[stack] += 1


def stack_of(frame: FrameType | None) -> Stack:
    """The functions of a stack."""
    names = list[str]()
    while frame is not None:
        code = frame.f_code
        path = PurePath(code.co_filename)
        names.append(f"{path.parent.name}/{path.name}:{code.co_name}")
        frame = frame.f_back
    return tuple(names[::-1][:MAX_DEPTH])


def svg(stacks: Stacks, title: str) -> str:
    """The picture; boxes say in full what they are when the mouse rests on them.

    Raises:
        ValueError: there are no samples.
    """
    num_samples = stacks.num_samples
    if not num_samples:
        raise ValueError("no samples")
    boxes = list(_boxes(sorted(stacks.counts.items()), 0, 0, MIN_SHARE * num_samples))
    height = (max(depth for _, depth, _, _ in boxes) + 3) * ROW
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="monospace"'
        f' font-size="{FONT}"><rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="4" y="{ROW - 4}">{escape(title)}: {num_samples} samples</text>',
    ]
    for name, depth, start, count in boxes:
        x, width = WIDTH * start / num_samples, WIDTH * count / num_samples
        y = height - (depth + 1) * ROW
        words = f"{name} {100 * count / num_samples:.1f} %"
        lines.append(
            f'<g><title>{escape(words)}</title><rect x="{x:.1f}" y="{y}" width="{max(0.5, width - 0.5):.1f}"'
            f' height="{ROW - 1}" fill="{_colour(name)}"/>{_label(name, x, y, width)}</g>'
        )
    return "\n".join([*lines, "</svg>\n"])


def _boxes(
    stacks: Sequence[tuple[Stack, int]], depth: int, start: int, least: float
) -> Iterator[tuple[str, int, int, int]]:
    """Name, depth, first sample and number of samples of each function; `stacks` sorted, alike down to `depth`."""
    at, i = start, 0
    while i < len(stacks):
        stack, _ = stacks[i]
        end = i
        while end < len(stacks) and stacks[end][0][depth : depth + 1] == stack[depth : depth + 1]:
            end += 1
        count = sum(number for _, number in stacks[i:end])
        if len(stack) > depth and count >= least:
            yield stack[depth], depth, at, count
            yield from _boxes(stacks[i:end], depth + 1, at, least)
        at, i = at + count, end


def _label(name: str, x: float, y: float, width: float) -> str:
    room = int(width / CHARACTER)
    words = name.rpartition(":")[2]
    if room < 4:
        return ""
    return f'<text x="{x + 2:.1f}" y="{y + ROW - 4}">{escape(words[:room])}</text>'


def _colour(name: str) -> str:
    folder = name.partition("/")[0]
    of_ours = {"routing": "client", "engine": "client", "trunk": "client", "text": "client", "net": "protocol"}
    return COLOURS.get(of_ours.get(folder, folder), OTHER_COLOUR)
