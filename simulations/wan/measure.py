"""What the relay is worth on this machine: how exact its delay is, and what it carries.

An echo between two hosts over UDP (small packets, one at a time), then one TCP stream at full speed.
"""

import os
import socket
import statistics
import threading
import time
from dataclasses import dataclass

from shoal.simulations.wan.namespace import inside_network
from shoal.simulations.wan.network import Host, Network

ECHO_BYTES = 64
TIMEOUT_S = 5.0
STREAM_S = 3.0
CHUNK = bytes(65_536)


@dataclass(frozen=True, slots=True)
class EchoTimes:
    """Round trips of small packets, milliseconds."""

    asked_ms: float
    num_echoes: int
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Carried:
    """One TCP stream at full speed."""

    mbit_per_s: float
    packets_per_s: float
    """Full ones of 1500 bytes; acknowledgements come on top."""


def measure_echo(network: Network, num_echoes: int) -> EchoTimes:
    """Round trips between the first two hosts. Blocking: run it on a thread of its own, whose network it changes."""
    with _server(network.hosts[1], socket.SOCK_DGRAM) as server, inside_network(network.hosts[0].namespace):
        server.settimeout(TIMEOUT_S)
        echoing = threading.Thread(target=_echo, args=(server, num_echoes))
        echoing.start()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(TIMEOUT_S)
            client.connect(server.getsockname())
            times_ms = [_one_echo(client) for _ in range(num_echoes)]
        echoing.join()
    asked_ms = (network.link(0).rtt_ms + network.link(1).rtt_ms) / 2
    p99_ms = statistics.quantiles(times_ms, n=100)[98]
    return EchoTimes(asked_ms, num_echoes, statistics.median(times_ms), p99_ms)


def measure_stream(network: Network) -> Carried:
    """Bytes from the first host to the second for a few seconds. Blocking, as `measure_echo`."""
    with _server(network.hosts[1], socket.SOCK_STREAM) as server, inside_network(network.hosts[0].namespace):
        server.listen()
        server.settimeout(TIMEOUT_S)
        sending = threading.Thread(target=_send, args=(server,))
        sending.start()
        with socket.create_connection(server.getsockname(), TIMEOUT_S) as client:
            started, num_bytes = time.perf_counter(), 0
            while received := client.recv(len(CHUNK)):
                num_bytes += len(received)
            elapsed_s = time.perf_counter() - started
        sending.join()
    return Carried(num_bytes * 8 / 1e6 / elapsed_s, num_bytes / 1448 / elapsed_s)


def _server(host: Host, kind: socket.SocketKind) -> socket.socket:
    """A socket belongs to the namespace that it was made in."""
    with inside_network(host.namespace):
        server = socket.socket(socket.AF_INET, kind)
        server.bind((host.address, 0))
        return server


def _echo(server: socket.socket, num_echoes: int) -> None:
    for _ in range(num_echoes):
        packet, sender = server.recvfrom(ECHO_BYTES)
        server.sendto(packet, sender)


def _one_echo(client: socket.socket) -> float:
    started = time.perf_counter()
    client.send(os.urandom(ECHO_BYTES))
    client.recv(ECHO_BYTES)
    return (time.perf_counter() - started) * 1000


def _send(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        until = time.perf_counter() + STREAM_S
        while time.perf_counter() < until:
            connection.sendall(CHUNK)
