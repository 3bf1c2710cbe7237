"""Where a process of `shoal` begins: the console script and `python -m shoal.cli`.

Imports nothing of ours before Ctrl-C is settled: what follows takes seconds on a slow machine, and a
`KeyboardInterrupt` inside torch's own initialisation aborts the process (`terminate called`, status 134).
"""

import os
import signal
import sys


def main() -> None:
    """Run the command line; until a verb has something to clean up (`run_coroutine`), Ctrl-C just ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from shoal.cli.language import take_language

    take_language(sys.argv[1:], os.environ)
    from shoal.cli.help_text import translated_command
    from shoal.cli.main import app

    translated_command(app)(prog_name="shoal")


if __name__ == "__main__":
    main()
