"""Tells systemd that we are ready, or stopping: the protocol of sd_notify(3), which is one datagram."""

import contextlib
import socket
from collections.abc import Callable, Mapping

Notify = Callable[[str], None]


def sd_notifier(environment: Mapping[str, str]) -> Notify:
    """What sends a state such as `READY=1`; does nothing where no service manager waits for it."""
    address = environment.get("NOTIFY_SOCKET", "")

    def notify(state: str) -> None:
        if not address.startswith(("/", "@")):
            return
        path = "\0" + address[1:] if address.startswith("@") else address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
            sender.sendto(state.encode(), path)  # a manager that is gone does not stop us

    return notify
