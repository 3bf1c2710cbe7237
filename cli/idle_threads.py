"""Whether torch's threads sleep when they have nothing to do. Knows one environment variable of libgomp."""

from collections.abc import MutableMapping

WAIT_POLICY = "OMP_WAIT_POLICY"


def let_idle_threads_sleep(environ: MutableMapping[str, str]) -> None:
    """Have torch's threads sleep between operations, unless the user has said otherwise; before torch is imported.

    By default they spin, measured 8 ms after each parallel operation: in the way of our kernels' threads (a packed
    trunk takes a third more for a token, two thirds more for eight; docs/LOG.md) and at the volunteer's cost.
    OpenMP 5.2 §21.1.7; libgomp reads it once, when it is loaded.
    """
    environ.setdefault(WAIT_POLICY, "PASSIVE")
