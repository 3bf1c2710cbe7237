"""The relay: one process that carries every IP packet between the hosts' namespaces, late or not at all.

It makes the namespaces too, and holds them by open files: when it ends, however it does, they are gone. One thread,
`select` and a heap: `select` wakes to the microsecond where epoll counts milliseconds. What it sustains is measured by
`wan.measure` and stands in docs/CHAOS.md.
"""

import contextlib
import heapq
import os
import random
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from shoal.simulations.wan.link import Fabric, Link
from shoal.simulations.wan.namespace import OWN_NETWORK, bring_up, leave_network, open_tun, wake_on_time

DEVICE = "shoal0"
MAX_PACKET_BYTES = 65_536
BURST = 64
"""Packets that are read from one device before the others get their turn."""

MAX_QUEUED = 100_000
"""Packets under way, 150 MB at most; beyond it they are dropped."""

PRIORITY = -10
"""Where allowed: a relay that waits for a core is a network with jitter."""

HEADER_BYTES, DESTINATION = 20, slice(16, 20)
"""Of an IPv4 packet (RFC 791 §3.1)."""


@dataclass(frozen=True, slots=True)
class LinkChange:
    """What the relay is told: a host has another link from now on."""

    host: int
    link: Link


@dataclass(frozen=True, slots=True)
class RelayReady:
    """What the relay tells: its process, and its open files that are the hosts' namespaces."""

    pid: int
    namespaces: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RelayFailed:
    """Why there is no network."""

    reason: str


def address_of(host: int) -> str:
    """10.77.x.y; up to 65,000 hosts in one /16."""
    return f"10.77.{(host + 1) // 256}.{(host + 1) % 256}"


def relay_main(links: Sequence[Link], seed: int, connection: Connection) -> None:
    """Make one namespace per link and carry packets until the other end of `connection` is closed."""
    with contextlib.suppress(OSError):
        os.nice(PRIORITY)
    try:
        wake_on_time()
        hosts = [_make_host(index) for index in range(len(links))]
    except OSError as error:
        connection.send(RelayFailed(str(error)))
        return
    relay = Relay([tun for _, tun in hosts], Fabric(links, random.Random(seed).random))
    connection.send(RelayReady(os.getpid(), tuple(namespace for namespace, _ in hosts)))
    with contextlib.suppress(EOFError, ConnectionError):
        relay.run(connection)


def _make_host(index: int) -> tuple[int, int]:
    """A namespace with a TUN device, as two open files; this thread is in it afterwards."""
    leave_network()
    namespace = os.open(OWN_NETWORK, os.O_RDONLY | os.O_CLOEXEC)
    tun = open_tun(DEVICE)
    bring_up("lo")
    bring_up(DEVICE, address_of(index))
    return namespace, tun


class Relay:
    """Carries packets between open TUN devices, host by host."""

    def __init__(self, tuns: Sequence[int], fabric: Fabric) -> None:
        self._tuns = list(tuns)
        self._fabric = fabric
        self._hosts = {tun: index for index, tun in enumerate(tuns)}
        self._targets = {socket.inet_aton(address_of(index)): index for index in range(len(tuns))}
        self._under_way: list[tuple[float, int, int, bytes]] = []
        self._num_taken = 0

    def run(self, connection: Connection) -> None:
        """Until `connection` is closed.

        Raises:
            EOFError, ConnectionError: it was.
        """
        control = connection.fileno()
        files = [control, *self._tuns]
        while True:
            ready, _, _ = select.select(files, [], [], self._pause_s())
            for file in ready:
                if file == control:
                    self._change(connection.recv())
                else:
                    self._take(file)
            self._deliver()

    def _pause_s(self) -> float | None:
        """Until the next packet is due; None: nothing is under way."""
        return max(self._under_way[0][0] - time.monotonic(), 0.0) if self._under_way else None

    def _change(self, change: LinkChange) -> None:
        self._fabric.set_link(change.host, change.link)

    def _take(self, tun: int) -> None:
        """Read what a host sends."""
        source = self._hosts[tun]
        for _ in range(BURST):
            try:
                packet = os.read(tun, MAX_PACKET_BYTES)
            except BlockingIOError:
                return
            target = self._targets.get(packet[DESTINATION]) if len(packet) >= HEADER_BYTES else None
            if target is None or packet[0] >> 4 != 4 or len(self._under_way) >= MAX_QUEUED:
                continue  # IPv6's own chatter, broadcasts, strangers
            due_at = self._fabric.arrival(source, target, len(packet), time.monotonic())
            if due_at is not None:
                self._num_taken += 1
                heapq.heappush(self._under_way, (due_at, self._num_taken, target, packet))

    def _deliver(self) -> None:
        """Hand over what is due; of two packets due at the same time, the one that was sent first."""
        now = time.monotonic()
        while self._under_way and self._under_way[0][0] <= now:
            _, _, target, packet = heapq.heappop(self._under_way)
            with contextlib.suppress(OSError):  # its device's queue is full: a lost packet
                os.write(self._tuns[target], packet)
