"""The boundary between the program and the terminal: runs a verb's coroutine, turns errors into one line and a status.

Knows nothing of what a verb does.
"""

import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from shoal.cli.error_words import explain, say_os_error
from shoal.protocol.errors import ShoalError

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

CTRL_C_STATUS = 130
"""128 + SIGINT, as shells have it."""

Result = TypeVar("Result")


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Print a ShoalError, or what the system refused, as one line and exit; Ctrl-C exits 130 without a word.

    In other languages than English a second line says what kind of error it is.
    """
    try:
        yield
    except ShoalError as error:
        print(f"shoal: {' '.join(str(error).split())}", file=sys.stderr)
        if explanation := explain(error):
            print(f"       {explanation}", file=sys.stderr)
        raise SystemExit(error.exit_status) from None
    except BrokenPipeError:
        raise SystemExit(1) from None  # the reader of our output is gone
    except OSError as error:  # a full disk, a directory that is not there, too many open files: it names its cause
        print("shoal:", "\n       ".join(say_os_error(error)), file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(file=sys.stderr)
        raise SystemExit(CTRL_C_STATUS) from None


def run_coroutine(
    make: Callable[[], Coroutine[None, None, Result]], make_loop: "Callable[[], AbstractEventLoop] | None" = None
) -> Result:
    """Run a verb in a fresh loop (make_loop: None is uvloop's); Ctrl-C cancels it and lets it clean up first (before,
    it just ends the process)."""
    import asyncio

    import uvloop

    signal.signal(signal.SIGINT, signal.default_int_handler)  # the only one that asyncio's runner replaces
    with asyncio.Runner(loop_factory=make_loop or uvloop.new_event_loop) as runner:
        return runner.run(make())
