"""Machines on a LAN without an uplink, as network namespaces: one bridge, a veth pair each, no default route."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

NETWORK = "10.77.0"
COMMAND_TIMEOUT_S = 20


def why_not() -> str:
    """Why namespaces can not be made here; empty if they can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "needs root to make network namespaces"
    if shutil.which("ip") is None:
        return "needs ip (iproute2)"
    probe = f"shoal-probe-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode:
        return "the kernel lets nobody make network namespaces here"
    with ExitStack() as stack:
        stack.callback(_ip, "netns", "delete", probe)
        words = ["ip", "-n", probe, "link", "add", "br0", "type", "bridge"]
        return "" if subprocess.run(words, capture_output=True, check=False).returncode == 0 else "needs bridges"


@contextmanager
def lan(num_machines: int) -> Iterator[list[str]]:
    """Namespaces `…-1` to `…-N` with the addresses 10.77.0.1 to N. The bridge is in one of its own; all is deleted."""
    names = [f"shoal-{os.getpid()}-{number}" for number in range(num_machines + 1)]
    switch = names[0]
    with ExitStack() as stack:
        for name in names:
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "delete", name)  # and with it its cards
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", switch, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        _ip("-n", switch, "link", "set", "br0", "up")
        for number, name in enumerate(names[1:], 1):
            port = f"port{number}"
            _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", switch, "link", "set", port, "master", "br0", "up")
            _ip("-n", name, "address", "add", f"{NETWORK}.{number}/24", "brd", "+", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
        yield names[1:]


def inside(name: str, *words: str) -> list[str]:
    """The command line that runs `words` on a machine."""
    return ["ip", "netns", "exec", name, *words]


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
