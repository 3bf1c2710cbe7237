"""What many seeds came to, in memory and, where a path is given, in a file from which another process goes on.

Seeds are counted in order: what ends early waits for those before it. So the file needs one number to say what is done,
and totals after any number of starts and ends are those of one run.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from blake3 import blake3

from shoal.protocol.errors import InvalidRequest
from shoal.simulations.virtual.faults import FaultTally
from shoal.simulations.virtual.run import Outcome

SAVE_EVERY_S = 1.0
"""What a SIGKILL may cost, besides seeds that are being worked on."""

AHEAD = 256
"""Seeds that may wait for an earlier one that takes long. None is handed out beyond."""

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Failure:
    """A seed that broke a promise."""

    seed: int
    problem: str


@dataclass(slots=True)
class SoakResult:
    """What many seeds came to."""

    num_seeds: int = 0
    num_tokens: int = 0
    num_calls: int = 0
    """Requests to holders."""
    failed: tuple[Failure, ...] = ()
    virtual_s: float = 0.0
    faults: FaultTally = field(default_factory=FaultTally)
    trace: str = ""
    """Hash over the trace hashes of all seeds, in order: two runs of one program have the same."""
    num_drafted: int = 0
    """Tokens that a draft had named."""

    def add(self, outcome: Outcome) -> None:
        """Count the next seed."""
        self.num_seeds += 1
        self.num_tokens += outcome.num_tokens
        self.num_calls += outcome.promises.num_sent
        self.virtual_s += outcome.virtual_s
        self.num_drafted += outcome.num_drafted
        self.faults.add(outcome.faults)
        self.trace = blake3((self.trace + outcome.trace_hash).encode()).hexdigest(8)
        if outcome.problem is not None:
            self.failed += (Failure(outcome.seed, outcome.problem),)

    def as_json(self) -> dict[str, object]:
        """All of it as plain values."""
        return {
            "seeds": self.num_seeds, "tokens": self.num_tokens, "calls": self.num_calls,
            "failed": [{"seed": failure.seed, "problem": failure.problem} for failure in self.failed],
            "virtual_s": round(self.virtual_s, 3), "faults": self.faults.as_json(), "trace": self.trace,
            "drafted": self.num_drafted,
        }  # fmt: skip


class Ledger:
    """Hands seeds out and counts what they came to. A context manager: at its end all that is known is in the file."""

    def __init__(
        self, first: int, end: int, program: str = "", path: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Seeds `first` to `end` - 1. program: see `program_version`. path: where another run may have left off.

        Raises:
            InvalidRequest: the file is no such file, of other seeds or of another program, or in use by another run.
        """
        self.result = SoakResult()
        self._first, self._end, self._program, self._path = first, end, program, path
        self._clock = clock
        self._lock = None if path is None else _locked(path)
        if path is not None and path.exists():
            try:
                self.result = self._read(path)
            except InvalidRequest:
                self._unlock()
                raise
        self._next = self._counted
        self._early: dict[int, Outcome] = {}
        self._saved_at = clock()

    @property
    def _counted(self) -> int:
        """The first seed that is not counted yet."""
        return self._first + self.result.num_seeds

    @property
    def num_left(self) -> int:
        """Seeds that are still to be counted."""
        return max(0, self._end - self._counted)

    def hand_out(self) -> int | None:
        """The next seed to run; None if there is none, or none before an earlier one is counted."""
        if self._next >= min(self._end, self._counted + AHEAD):
            return None
        self._next += 1
        return self._next - 1

    def add(self, outcome: Outcome) -> None:
        """A seed has ended."""
        self._early[outcome.seed] = outcome
        while (known := self._early.pop(self._counted, None)) is not None:
            self.result.add(known)
        if self._clock() - self._saved_at >= SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the file, whole or not at all; nothing without a path."""
        if self._path is None:
            return
        told = {"format": FORMAT, "program": self._program, "first": self._first, "next": self._counted}
        unfinished = self._path.with_name(f"{self._path.name}.new")
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump(told | self.result.as_json(), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, self._path)
        self._saved_at = self._clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.save()
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def _read(self, path: Path) -> SoakResult:
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            if told["format"] != FORMAT:
                raise ValueError(f"format {told['format']}")
            if told["program"] != self._program:
                raise InvalidRequest(
                    f"{path} is of another version of the program ({told['program']}, this is {self._program}): "
                    "go on with that one, remove the file, or give another"
                )
            if told["first"] != self._first:
                raise InvalidRequest(f"{path} begins with seed {told['first']}, not with {self._first}")
            return _result(told)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InvalidRequest(f"{path} is not the state of a run of seeds") from error


def _result(told: Mapping[str, Any]) -> SoakResult:
    """Of a file that somebody may have edited: what is no number raises ValueError or TypeError here and not later."""
    failed = tuple(Failure(int(each["seed"]), str(each["problem"])) for each in told["failed"])
    return SoakResult(
        int(told["seeds"]), int(told["tokens"]), int(told["calls"]), failed, float(told["virtual_s"]),
        FaultTally.from_json(told["faults"]), str(told["trace"]), int(told["drafted"]),
    )  # fmt: skip


def _locked(path: Path) -> TextIO:
    """Two runs at once would each count what the other did. Let go of by the system when the process ends, however."""
    file = path.with_name(f"{path.name}.lock").open("w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InvalidRequest(f"{path} is in use: another run of seeds goes on with it") from None
    return file
