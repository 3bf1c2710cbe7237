"""A node as a process of its own, for tests: started, waited for, ended; a failure shows the end of all that it said.

What it prints goes to files, never to pipes that somebody would have to empty.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

LAST = "stop:      Ctrl-C (finishes what it has begun)\n"
"""What a node says last when it is up."""

PATIENCE_S = 240.0
"""For a start or an end on a machine that has much else to do; what has not come by then never will."""

TAIL_LINES = 40


@contextmanager
def node_process(
    environment: dict[str, str], *words: str, output: Path | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`shoal node` with these words, and what it said until it was up; ends with SIGTERM and must exit 0, unless it was
    killed. An exception that passes here takes the end of the node's output and log along, as a note.

    output: an empty directory that keeps what it said, in `stdout` and `stderr`."""
    with TemporaryDirectory(prefix="shoal-said") as directory:
        out, err = ((output or Path(directory)) / name for name in ("stdout", "stderr"))
        try:
            node = _started(environment, words, out, err)
            try:
                yield node, out.read_text(encoding="utf-8")
            finally:
                _end(node)
            assert node.returncode in (0, -signal.SIGKILL), f"the node ended with status {node.returncode}"
        except BaseException as error:
            error.add_note(_tails(words, (out, err, _log(environment, words))))
            raise


def _started(environment: dict[str, str], words: tuple[str, ...], out: Path, err: Path) -> subprocess.Popen[str]:
    """A node that is up. One that ends because nobody answered in time (1) is started again, as its owner would."""
    command, end = [sys.executable, "-m", "shoal.cli", "node", *words], time.monotonic() + PATIENCE_S
    while True:
        with out.open("a") as stdout, err.open("a") as stderr:
            node = subprocess.Popen(command, env=environment, text=True, stdout=stdout, stderr=stderr)
        try:
            while node.poll() is None:
                if LAST in out.read_text(encoding="utf-8"):
                    return node
                assert time.monotonic() < end, f"the node was not up after {PATIENCE_S:.0f} s"
                time.sleep(0.05)
        except BaseException:
            node.kill()
            node.wait()
            raise
        is_late = time.monotonic() > end
        assert node.returncode == 1, f"the node ended with status {node.returncode} before it was up"
        assert not is_late, f"the node was not up after {PATIENCE_S:.0f} s"


def _end(node: subprocess.Popen[str]) -> None:
    """Ask it to end; kill it if it does not, and say so."""
    node.terminate()
    try:
        node.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        node.kill()
        node.wait()
        raise


def _log(environment: dict[str, str], words: tuple[str, ...]) -> Path:
    name = words[words.index("--name") + 1] if "--name" in words else "node"
    return Path(environment["XDG_STATE_HOME"]) / "shoal" / f"{name}.log"


def _tails(words: tuple[str, ...], files: tuple[Path, ...]) -> str:
    told = [f"\n--- node {' '.join(words)}"]
    for path in files:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        told += [f"--- the last of {len(lines)} lines of its {path.name}:", *lines[-TAIL_LINES:]]
    return "\n".join(told)
