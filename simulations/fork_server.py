"""The process that node processes are forked from: it has imported everything once.

Importing torch and hivemind takes one to two seconds of CPU, which five fresh interpreters on two cores would pay five
times. This module is light on purpose: start the fork server first, and it imports on one core while its launcher
imports on another.
"""

import multiprocessing
import signal
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext


def start_fork_server() -> ForkServerContext:
    """Start importing in the background; do it before your own heavy imports.

    SIGINT is blocked while the fork server starts, and so in all nodes: Ctrl-C belongs to the launcher, which then ends
    its nodes in order.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["shoal.simulations.preload"])
    resource_tracker.ensure_running()  # started later it would unblock SIGINT again
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return context
