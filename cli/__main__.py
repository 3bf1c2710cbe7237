"""Where a process of `shoal` begins: the console script and `python -m shoal.cli`.

Imports nothing but `signal` before Ctrl-C is settled: what follows takes seconds on a slow machine, and a
`KeyboardInterrupt` inside torch's own initialisation aborts the process (`terminate called`, status 134).
"""

import signal


def main() -> None:
    """Run the command line; until a verb has something to clean up (`run_coroutine`), Ctrl-C just ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from shoal.cli.main import app

    app(prog_name="shoal")


if __name__ == "__main__":
    main()
