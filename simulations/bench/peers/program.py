"""A program that answers questions, one JSON line each: the driver's side, and the inside.

For peers that are whole systems with processes of their own. It ends when its standard input does, so that it can end
what it started. `process.py` is for kernels, which stand still between questions.
"""

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from shoal.simulations.bench.peers.environments import REASON_CHARS, Environment, NotAvailable

ANSWER_TIMEOUT_S = 300.0
"""The first answer comes after imports and a model's making."""

END_TIMEOUT_S = 30.0

Answer = dict[str, Any]


class Program:
    """A running program. Leaving the context ends it."""

    def __init__(self, environment: Environment, module: str, *arguments: str, folder: Path) -> None:
        """module: of this package. folder: its working directory, where its errors are kept."""
        self._errors = folder / f"{module}.err"
        command = [str(environment.interpreter), "-m", f"{__package__}.{module}", *arguments]
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=folder,
                env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"} | environment.variables,
            )  # fmt: skip

    def __enter__(self) -> "Program":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._process.communicate(timeout=END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def ask(self, question: Answer) -> Answer:
        """Its answer to one question.

        Raises:
            NotAvailable: it ended, or takes too long.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise ValueError("a program without pipes")
        try:
            stdin.write(json.dumps(question).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise NotAvailable(self._why()) from None
        if not select.select([stdout], [], [], ANSWER_TIMEOUT_S)[0]:
            raise NotAvailable(f"no answer in {ANSWER_TIMEOUT_S:.0f} s")
        line = stdout.readline()
        if not line:
            raise NotAvailable(self._why())
        answer: Answer = json.loads(line)
        return answer

    def _why(self) -> str:
        code = self._process.wait(END_TIMEOUT_S)
        words = self._errors.read_text(errors="replace").strip().splitlines()
        return f"ended with status {code}: {words[-1][-REASON_CHARS:]}" if words else f"ended with status {code}"


def answer_lines(handle: Callable[[Answer], Answer]) -> None:
    """Answer every line of standard input until it ends. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(handle(json.loads(line))) + "\n")
        answers.flush()
