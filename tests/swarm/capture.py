"""Listens to the loopback interface, as a stranger on the same network would to a real one. Needs CAP_NET_RAW."""

import math
import socket
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

from shoal.simulations.wan.namespace import bring_up, leave_network

T = TypeVar("T")

ETH_P_IP = 0x0800
ETHERNET_HEADER_BYTES = 14
TCP = 6


class LoopbackCapture:
    """Collects the payloads of all TCP segments on `lo` while the `with` lasts."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024 * 1024)
        self._socket.bind(("lo", 0))
        self._socket.settimeout(0.1)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._is_over.is_set():
            try:
                packet = self._socket.recv(1 << 17)
            except TimeoutError:
                continue
            payload = tcp_payload(packet)
            if payload:
                self.payloads.append(payload)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()
        self._socket.close()


def alone_on_loopback(act: Callable[[], T]) -> T:
    """Run `act` and its child processes where nobody else talks over `lo`; on this machine's own without root.

    A namespace belongs to a thread, so a thread that ends with it.
    """

    def run() -> T:
        try:
            leave_network()
        except PermissionError:
            return act()
        bring_up("lo")
        return act()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()


def tcp_payload(packet: bytes) -> bytes:
    """The payload of an Ethernet frame that carries IPv4 and TCP; empty for others."""
    ip = packet[ETHERNET_HEADER_BYTES:]
    if len(ip) < 20 or ip[0] >> 4 != 4 or ip[9] != TCP:
        return b""
    header_bytes, total_bytes = (ip[0] & 15) * 4, int.from_bytes(ip[2:4], "big")
    tcp = ip[header_bytes : total_bytes or len(ip)]
    return tcp[(tcp[12] >> 4) * 4 :]


def entropy_bits(data: bytes) -> float:
    """Shannon entropy of the bytes, in bits per byte; 8 for noise, about 7 for fp32 tensors, below 5 for text."""
    counts = Counter(data)
    return -sum(count / len(data) * math.log2(count / len(data)) for count in counts.values())
