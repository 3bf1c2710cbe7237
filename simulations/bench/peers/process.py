"""A member in a process of its own, which stands still while it is not its turn.

Stopped (SIGSTOP) means that no spinning thread of one member takes a core from another: some libraries' workers never
sleep.
"""

import json
import os
import select
import signal
import subprocess
from pathlib import Path
from types import TracebackType

from shoal.simulations.bench.peers.environments import REASON_CHARS, Environment, NotAvailable
from shoal.simulations.bench.peers.members import MemberSpec

START_TIMEOUT_S = 300.0
"""Packing a gigabyte, quantized once, on a machine where others start as well."""

ANSWER_TIMEOUT_S = 120.0
END_TIMEOUT_S = 5.0

Reply = dict[str, object]


class MemberProcess:
    """Speaks `worker.py`'s lines. Leaving the context ends the process, by force if need be."""

    def __init__(self, spec: MemberSpec, environment: Environment, folder: Path, threads: int) -> None:
        self.spec = spec
        self.prefix = f"{spec.program}-{spec.variant}"
        """Of the names of its files."""
        self._errors = folder / f"{self.prefix}.err"
        command = [str(environment.interpreter), "-m", f"{__package__}.{spec.program}", spec.variant]
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [*command, "--threads", str(threads), "--folder", str(folder)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=folder,
                env=os.environ | environment.variables, bufsize=0,
            )  # fmt: skip
        self.about = ""
        self._received = b""

    def __enter__(self) -> "MemberProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        if process.poll() is None:
            process.kill()  # also one that is stopped
        process.wait(END_TIMEOUT_S)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def wait_until_ready(self) -> None:
        """Until its weights are packed; then it stands still.

        Raises:
            NotAvailable: it ended or did not come up.
        """
        self.about = str(self._reply(START_TIMEOUT_S)["about"])
        self._stop()

    def ask(self, question: Reply) -> Reply:
        """Let it run for one question.

        Raises:
            NotAvailable: it ended instead of answering, or takes too long.
        """
        self._process.send_signal(signal.SIGCONT)
        try:
            os.write(self._stdin(), json.dumps(question).encode() + b"\n")
        except BrokenPipeError:
            raise NotAvailable(self._why()) from None
        reply = self._reply(ANSWER_TIMEOUT_S)
        self._stop()
        return reply

    def _stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def _stdin(self) -> int:
        if self._process.stdin is None:
            raise ValueError("a member without standard input")
        return self._process.stdin.fileno()

    def _reply(self, timeout_s: float) -> Reply:
        if self._process.stdout is None:
            raise ValueError("a member without standard output")
        pipe = self._process.stdout.fileno()
        while b"\n" not in self._received:
            if not select.select([pipe], [], [], timeout_s)[0]:
                raise NotAvailable(f"no answer in {timeout_s:.0f} s")
            if not (part := os.read(pipe, 1 << 16)):
                raise NotAvailable(self._why())
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        reply: Reply = json.loads(line)
        return reply

    def _why(self) -> str:
        """How it ended, and its last words."""
        code = self._process.wait(END_TIMEOUT_S)
        ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        words = self._errors.read_text(errors="replace").strip().splitlines()
        return f"{ended}: {words[-1][-REASON_CHARS:]}" if words else ended
