"""What TCP's congestion control and its restart after a pause cost an exchange: an echo of 14 and 28 KiB over a relay.

    python -m shoal.simulations.wan.tcp_echo        needs root

Plain sockets in two namespaces, as the kernel has them, as `protocol/net/tcp.py` tunes them, and tuned after they have
connected, which is too late: the kernel keeps the pacing of a connection that was paced once. Round trips of an echo
over the link's own, medians.
"""

import asyncio
import json
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from shoal.protocol.net.tcp import congestion_control_of, read_tcp_kernel, tune
from shoal.simulations.bench.machine import describe_machine, git_commit
from shoal.simulations.fork_server import start_fork_server
from shoal.simulations.wan.link import Link
from shoal.simulations.wan.namespace import inside_network, why_no_namespaces
from shoal.simulations.wan.network import Network, open_network

RTT_MS = 20.0
SIZES = (14_336, 28_672)
NUM_ECHOES = 60
NUM_AFTER_PAUSES, PAUSE_S = 5, 1.0
TIMEOUT_S = 10.0
ALL = socket.MSG_WAITALL


@dataclass(frozen=True, slots=True)
class Echoes:
    """`warm`, `after_pause`: times of an echo over the link's round trip."""

    sockets: str
    congestion_control: str
    size_bytes: int
    warm: float
    after_pause: float


def leave(connection: socket.socket) -> None:
    """As the kernel has it, but for Nagle's delay."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


KINDS: dict[str, tuple[Callable[[socket.socket], None], Callable[[socket.socket], None]]] = {
    "the kernel's": (leave, leave),
    "tuned before": (tune, leave),
    "tuned after": (leave, tune),
}
"""What is done before a socket connects or listens, and what after."""


def measure(network: Network, kind: str, size_bytes: int) -> Echoes:
    """Echoes between the first two hosts. Blocking: run it on a thread of its own, whose network it changes."""
    before, after = KINDS[kind]
    with inside_network(network.hosts[1].namespace):
        server = socket.socket()
        server.bind((network.hosts[1].address, 0))
    with server, inside_network(network.hosts[0].namespace), socket.socket() as client:
        before(server)
        before(client)
        server.listen()
        echoing = threading.Thread(target=_echo, args=(server, after, size_bytes))
        echoing.start()
        client.settimeout(TIMEOUT_S)
        client.connect(server.getsockname())
        after(client)
        times = [_exchange(client, size_bytes) for _ in range(NUM_ECHOES)][NUM_ECHOES // 2 :]
        late = [_after_pause(client, size_bytes) for _ in range(NUM_AFTER_PAUSES)]
        control = congestion_control_of(client)
        client.shutdown(socket.SHUT_WR)
        echoing.join()
    rtt_s = RTT_MS / 1000
    return Echoes(kind, control, size_bytes, statistics.median(times) / rtt_s, statistics.median(late) / rtt_s)


def _echo(server: socket.socket, after: Callable[[socket.socket], None], size_bytes: int) -> None:
    connection, _ = server.accept()
    with connection:
        after(connection)
        while len(data := connection.recv(size_bytes, ALL)) == size_bytes:
            connection.sendall(data)


def _exchange(client: socket.socket, size_bytes: int) -> float:
    started = time.perf_counter()
    client.sendall(bytes(size_bytes))
    left = size_bytes
    while left:
        left -= len(client.recv(left))
    return time.perf_counter() - started


def _after_pause(client: socket.socket, size_bytes: int) -> float:
    time.sleep(PAUSE_S)
    return _exchange(client, size_bytes)


async def main() -> dict[str, object]:
    """All kinds of sockets and sizes, in turn."""
    context = start_fork_server()
    async with open_network(context, [Link(RTT_MS)] * 2, 0) as network:
        rows = [await asyncio.to_thread(measure, network, kind, size) for size in SIZES for kind in KINDS]
    found = {"kernel": asdict(read_tcp_kernel()), "rtt_ms": RTT_MS, "rows": [asdict(row) for row in rows]}
    return {"machine": describe_machine(), "commit": git_commit(), **found}


if __name__ == "__main__":
    if reason := why_no_namespaces():
        print(f"no network namespaces: {reason}", file=sys.stderr)
        raise SystemExit(2)
    print(json.dumps(asyncio.run(main()), indent=2))
