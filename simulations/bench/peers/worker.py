"""The inside of a member's process: answers the driver's questions, one JSON line each, in whatever environment it has.

Knows no member; each gives `serve` a way to make itself. Standard output belongs to the driver: what libraries print
goes to standard error.
"""

import argparse
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

HIDDEN, INTER = 7168, 2048
"""DeepSeek-V3: `hidden_size`, `moe_intermediate_size`."""

SHAPES = {"gate": (INTER, HIDDEN), "up": (INTER, HIDDEN), "down": (HIDDEN, INTER)}
"""`[out, in]`."""

ROTATED_BYTES = 900_000_000
"""Weights that calls rotate over: far above any L3."""

PAUSE_S = 0.01
PR_SET_PDEATHSIG = 1
"""prctl(2)."""

OTHER_COPY = 7
COPY_TOLERANCE = 1e-2
"""Of the largest value: threads may add in another order."""

MIN_CALLS = 2
BLOCK_LIMIT_S = 0.4
"""A block ends early beyond this, but not before one counted call."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a member is asked to be. `weights`: gate, up and down as f32, bf16 numbers all, by name."""

    variant: str
    threads: int
    weights: dict[str, Floats]


class Member(Protocol):
    """One way to run an expert, with enough copies of it packed that no cache serves them."""

    @property
    def about(self) -> str:
        """Version, and what of it runs."""

    @property
    def held(self) -> dict[str, Floats] | None:
        """The numbers that its weights mean, as f32; None: it does not say."""

    def prepare(self, x: Floats) -> Callable[[int], None]:
        """A call of copy number i, modulo how many there are, on x: f32[T, H] of bf16 numbers. Packing is done."""

    def output(self) -> Floats:
        """f32[T, H]: what the last call gave."""


def num_copies(size_bytes: int) -> int:
    """Copies of an expert that fill `ROTATED_BYTES`."""
    return -(-ROTATED_BYTES // size_bytes)


def rows(num_tokens: int) -> Floats:
    """The x of all members: f32[T, H], bf16 numbers."""
    return to_bf16(np.random.default_rng(num_tokens).standard_normal((num_tokens, HIDDEN), dtype=np.float32))


def to_bf16(values: Floats) -> Floats:
    """Rounded to nearest even, as f32; finite values."""
    bits = values.view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    kept: Floats = (rounded & np.uint32(0xFFFF0000)).view(np.float32)
    return kept


def bf16_bits(values: Floats) -> npt.NDArray[np.uint16]:
    """The upper halves of bf16 numbers."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def serve(make: Callable[[Task], Member]) -> None:
    """Make the member that the command line asks for, then answer until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("variant")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="weights are read from it, outputs written to it")
    arguments = parser.parse_args()
    end_with_parent()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    weights = {name: _read(arguments.folder / f"{name}.f32", shape) for name, shape in SHAPES.items()}
    member = make(Task(arguments.variant, arguments.threads, weights))
    del weights
    _answer(replies.write, {"about": member.about})
    replies.flush()
    call: Callable[[int], None] | None = None
    for line in sys.stdin:
        question = json.loads(line)
        if "tokens" in question:
            call = member.prepare(rows(question["tokens"]))
            _write(arguments.folder / question["output"], _checked(call, member))
            _answer(replies.write, {})
        elif "held" in question:
            _answer(replies.write, {"names": _write_held(arguments.folder, question["held"], member.held)})
        elif call is not None:
            _answer(replies.write, {"seconds": _block(call, question["first"], question["calls"])})
        replies.flush()


def end_with_parent() -> None:
    """A member that stands still would otherwise outlive a driver that was killed, with its gigabyte."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _checked(call: Callable[[int], None], member: Member) -> Floats:
    """The output of the first copy, once another copy has given the same: copies that are not there cost no reads.

    Raises:
        RuntimeError: another copy gives something else.
    """
    call(0)
    first = member.output().copy()
    call(OTHER_COPY)
    if not np.allclose(member.output(), first, rtol=0, atol=COPY_TOLERANCE * float(np.abs(first).max())):
        raise RuntimeError(f"copy {OTHER_COPY} of the expert answers otherwise than copy 0")
    return first


def _block(call: Callable[[int], None], first: int, num_calls: int) -> list[float]:
    """Seconds of the calls of a block but the first, which warms up; a slow member makes fewer."""
    sleep(PAUSE_S)
    taken: list[float] = []
    began = perf_counter()
    for number in range(num_calls):
        started = perf_counter()
        call(first + number)
        taken.append(perf_counter() - started)
        if len(taken) >= MIN_CALLS and perf_counter() - began > BLOCK_LIMIT_S:
            break
    return taken[1:]


def _answer(write: Callable[[str], int], reply: dict[str, object]) -> None:
    write(json.dumps(reply) + "\n")


def _write_held(folder: Path, prefix: str, held: dict[str, Floats] | None) -> list[str]:
    for name, values in (held or {}).items():
        _write(folder / f"{prefix}.{name}.f32", values)
    return list(held or ())


def _read(path: Path, shape: tuple[int, int]) -> Floats:
    return np.fromfile(path, dtype=np.float32).reshape(shape)


def _write(path: Path, values: Floats) -> None:
    np.ascontiguousarray(values, dtype=np.float32).tofile(path)
