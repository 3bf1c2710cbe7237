"""What TCP does to an exchange on this machine: what the kernel is set to, and what a socket of ours can be told.

Two settings of Linux cost round trips (measured, transport §4): a pacing congestion control (1.6 instead of 1.0 for 14
KiB) and the window's restart after an idle moment (28 KiB then take 3). The first can be chosen for a socket, before it
connects; for the second there is no socket option, so whoever owns the machine is told. Knows no TLS and no peers.
"""

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path

PROC = Path("/proc/sys/net/ipv4")
"""Where Linux says its settings. They are those of the network namespace that we are in."""

SLOW_START_KEY = "net.ipv4.tcp_slow_start_after_idle"
CONGESTION_KEY = "net.ipv4.tcp_congestion_control"

PACED = "bbr"
"""It paces what a connection sends that has little to send: an exchange of 14 KiB takes 1.6 round trips (measured)."""

UNPACED = ("cubic", "reno")
"""What to have instead, the better first; every Linux has reno."""

KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT = 60, 15, 4
"""TCP asks a silent peer after a minute and gives it another, so that lanes of clients that lost power do not hold
their places. (Linux alone would ask nine times in eleven minutes.)"""

USER_TIMEOUT_MS = 110_000
"""What we sent and nobody acknowledged for so long is lost (RFC 5482); TCP alone would try for a quarter of an hour. It
also ends keepalive (tcp(7)), so it must not be shorter than that: at 30 s one lost question would cut a quiet lane."""

CONGESTION_NAME_BYTES = 16
"""TCP_CA_NAME_MAX of linux/tcp.h."""


class TcpTrouble(StrEnum):
    """A setting that costs round trips."""

    PACED = "paced"
    """The congestion control paces."""
    RESTARTS = "restarts"
    """The window shrinks in idle moments."""


@dataclass(frozen=True, slots=True)
class TcpKernel:
    """What the kernel is set to."""

    congestion_control: str = ""
    """Of new connections that do not say theirs; empty: not Linux, or not to be read here."""
    offered: tuple[str, ...] = ()
    """Congestion controls that this kernel has."""
    restarts_after_idle: bool | None = None
    """None: not Linux, or not to be read here."""

    @property
    def is_paced(self) -> bool:
        return self.congestion_control.startswith(PACED)

    @property
    def better_control(self) -> str:
        """Which congestion control to have instead of one that paces."""
        return next((each for each in UNPACED if each in self.offered), UNPACED[-1])


@dataclass(frozen=True, slots=True)
class TcpAdvice:
    """What is wrong, and the one command that cures all of it."""

    troubles: tuple[TcpTrouble, ...]
    command: str


def read_tcp_kernel(folder: Path = PROC) -> TcpKernel:
    """Ask the kernel. Needs no rights; what can not be read is left open."""
    restarts = _said(folder / "tcp_slow_start_after_idle")
    return TcpKernel(
        _said(folder / "tcp_congestion_control"),
        tuple(_said(folder / "tcp_available_congestion_control").split()),
        restarts != "0" if restarts else None,
    )


def tcp_advice(kernel: TcpKernel, *, sets_own: bool) -> TcpAdvice | None:
    """What the owner of this machine should change; None: nothing. sets_own: all connections that matter are ours and
    could be told another congestion control (`unpaced_control`)."""
    keys: dict[TcpTrouble, str] = {}
    if kernel.is_paced and not sets_own:
        keys[TcpTrouble.PACED] = f"{CONGESTION_KEY}={kernel.better_control}"
    if kernel.restarts_after_idle:
        keys[TcpTrouble.RESTARTS] = f"{SLOW_START_KEY}=0"
    return TcpAdvice(tuple(keys), f"sudo sysctl {' '.join(keys.values())}") if keys else None


def unpaced_control() -> str:
    """Which congestion control a socket of ours gets here; empty: that cannot be known. Makes a socket to see."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        tune(probe)
        return congestion_control_of(probe)


def congestion_control_of(connection: socket.socket) -> str:
    """A socket's congestion control; empty off Linux."""
    if not hasattr(socket, "TCP_CONGESTION"):
        return ""
    name = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION_NAME_BYTES)
    return name.partition(b"\0")[0].decode("ascii")


def tune(connection: socket.socket) -> None:
    """Set what a socket can be told, before it connects or listens (a connection that was once paced stays so: the
    kernel keeps its pacing). No Nagle delay, for an exchange is one write each way; keepalive, so that dead peers are
    noticed; no pacing congestion control, where the kernel lets us choose. What is accepted inherits all of it."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # Linux; macOS has another name and two hours
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    if congestion_control_of(connection).startswith(PACED):
        _choose_unpaced(connection)


def _choose_unpaced(connection: socket.socket) -> None:
    for name in UNPACED:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode("ascii"))
        except OSError:  # not in this kernel, or not for everybody (tcp_allowed_congestion_control)
            continue
        return


def leaves_this_machine(addresses: Iterable[str]) -> bool:
    """Whether some of these, `host:port` or multiaddrs, are not on loopback. A name may be anywhere: it does."""
    return any(not _is_loopback(_host(address)) for address in addresses)


def _host(address: str) -> str:
    if address.startswith("/"):
        return address.split("/", 3)[2] if address.count("/") > 1 else ""
    return address.rpartition(":")[0].strip("[]")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _said(path: Path) -> str:
    """A file of the kernel's; empty where there is none, as off Linux and in some containers."""
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
