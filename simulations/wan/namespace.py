"""Linux network namespaces without names: made, entered and left by system calls, gone with the last process in them.

No `ip`, nothing under /run/netns, nothing to clear away after a crash. Knows no relay and no nodes.
"""

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000  # linux/sched.h
MS_REC, MS_PRIVATE = 0x4000, 0x40000  # linux/mount.h
PR_SET_PDEATHSIG, PR_SET_TIMERSLACK = 1, 29  # linux/prctl.h
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8913, 0x8914  # linux/sockios.h
SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFMTU = 0x8916, 0x891C, 0x8922
IFF_UP = 0x1
OWN_NETWORK = "/proc/thread-self/ns/net"
TUN_DEVICE = Path("/dev/net/tun")
CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
IDLE_RESTART = Path("/proc/sys/net/ipv4/tcp_slow_start_after_idle")


def why_no_namespaces() -> str | None:
    """Why this process can not make network namespaces with TUN devices; None: it can. Tries it, on a child."""
    if not hasattr(os, "fork") or not Path(OWN_NETWORK).exists():
        return "this system has none"
    if not os.access(TUN_DEVICE, os.R_OK | os.W_OK):
        return f"{TUN_DEVICE} is not there or not ours"
    if os.geteuid() != 0:
        return "they need root"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # nothing but system calls here: the parent may have threads
        try:
            leave_network()
            os.close(open_tun("shoal0"))
        except OSError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader, "rb") as said:
        return said.read().decode() or None


def leave_network() -> None:
    """Put the calling thread into a new, empty network namespace.

    Raises:
        OSError: not allowed.
    """
    _checked("unshare", CLONE_NEWNET)


def enter_network(path: str) -> None:
    """Put the calling thread into the namespace that a file of /proc stands for; threads it starts later too.

    Raises:
        OSError: not allowed, or the namespace is gone.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked("setns", file, CLONE_NEWNET)
    finally:
        os.close(file)


@contextmanager
def inside_network(path: str) -> Iterator[None]:
    """Put the calling thread into a namespace, and back at the end."""
    own = os.open(OWN_NETWORK, os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter_network(path)
        yield
    finally:
        _checked("setns", own, CLONE_NEWNET)
        os.close(own)


def set_congestion_control(name: str) -> None:
    """TCP's congestion control of connections that are made from now on in the calling thread's namespace.

    Raises:
        OSError: the kernel has none of that name, or gives it to nobody but the whole machine.
    """
    CONGESTION_CONTROL.write_text(name, encoding="ascii")


def keep_window_when_idle() -> None:
    """Let connections in the calling thread's namespace keep their congestion window in pauses, against RFC 2861.

    Raises:
        OSError: not allowed.
    """
    IDLE_RESTART.write_text("0", encoding="ascii")


def mount_private_disk(directory: Path, size_bytes: int) -> None:
    """Mount an empty disk of a size for this process and its children alone.

    Raises:
        OSError: not allowed.
    """
    _checked("unshare", CLONE_NEWNS)
    _checked("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    _checked("mount", b"tmpfs", os.fsencode(directory), b"tmpfs", 0, f"size={size_bytes},mode=0700".encode())


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send this process a signal when its parent ends: a stopped process notices nothing itself."""
    _checked("prctl", PR_SET_PDEATHSIG, signal_number)


def wake_on_time() -> None:
    """Let the calling thread's timers be exact to a microsecond instead of fifty."""
    _checked("prctl", PR_SET_TIMERSLACK, 1000)


def open_tun(name: str) -> int:
    """A TUN device in the calling thread's namespace, as a file of whole IP packets that does not block.

    Raises:
        OSError: not allowed.
    """
    file = os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    except OSError:
        os.close(file)
        raise
    return file


def bring_up(name: str, address: str | None = None, netmask: str = "255.255.0.0", mtu: int = 1500) -> None:
    """Bring up a device of the calling thread's namespace, with an IPv4 address; None: as it is (loopback)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        if address is not None:
            for request, value in ((SIOCSIFADDR, address), (SIOCSIFNETMASK, netmask)):
                packed = struct.pack("16sHH4s8x", name.encode(), socket.AF_INET, 0, socket.inet_aton(value))
                fcntl.ioctl(control, request, packed)
            fcntl.ioctl(control, SIOCSIFMTU, struct.pack("16si20x", name.encode(), mtu))
        flags = struct.unpack("16sH22x", fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16s24x", name.encode())))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), flags | IFF_UP))


def _checked(call: str, *arguments: int | bytes | None) -> None:
    """A system call by its name in the C library, which Python has only since 3.12."""
    if getattr(ctypes.CDLL(None, use_errno=True), call)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
