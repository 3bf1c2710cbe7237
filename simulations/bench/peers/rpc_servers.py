"""RPC servers of llama.cpp, each in its network namespace or on loopback, for one `with`."""

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import psutil

from shoal.simulations.bench.peers.environments import Environment, NotAvailable
from shoal.simulations.wan.namespace import inside_network
from shoal.simulations.wan.network import Host

BINARY = "ggml-rpc-server"
PORT = 50_052
"""In a namespace nobody else has it."""

START_TIMEOUT_S = 60.0
POLL_S = 0.05
LISTENING = "0A"
"""State in /proc/net/tcp (include/net/tcp_states.h)."""


@dataclass(frozen=True, slots=True)
class RpcServer:
    """One that listens."""

    address: str
    """`HOST:PORT`."""
    pid: int
    own_bytes: int
    """Memory before it had a model."""

    def model_bytes(self) -> int:
        """Memory that it has taken since."""
        return memory_bytes(self.pid) - self.own_bytes


def memory_bytes(pid: int) -> int:
    """A process's proportional share of memory: pages that processes share count once in all."""
    return int(psutil.Process(pid).memory_full_info().pss)


@asynccontextmanager
async def rpc_servers(
    environment: Environment, folder: Path, hosts: Sequence[Host] | int
) -> AsyncIterator[list[RpcServer]]:
    """Start one in each host's namespace, or so many on loopback; in `folder` they write what they say.

    Raises:
        NotAvailable: one does not come up.
    """
    places = [(None, "127.0.0.1", _free_port()) for _ in range(hosts)] if isinstance(hosts, int) else [
        (host.namespace, host.address, PORT) for host in hosts
    ]  # fmt: skip
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number, (namespace, address, port) in enumerate(places):
            with inside_network(namespace) if namespace else nullcontext():
                processes.append(_start(environment, folder / f"rpc{number}.log", address, port))
        servers = []
        for process, (_, address, port) in zip(processes, places, strict=True):
            await _until_it_listens(process, port)
            servers.append(RpcServer(f"{address}:{port}", process.pid, memory_bytes(process.pid)))
        yield servers
    finally:
        for process in processes:
            process.kill()
            process.wait()


def binary(environment: Environment) -> Path:
    """Where the server's program is."""
    return Path(environment.variables["SHOAL_GGML_LIBRARIES"]) / BINARY


def _start(environment: Environment, log: Path, address: str, port: int) -> "subprocess.Popen[bytes]":
    words = (str(binary(environment)), address, str(port))
    with log.open("wb") as said:
        return subprocess.Popen(
            [str(environment.interpreter), "-m", f"{__package__}.rpc_server", *words],
            stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=os.environ | environment.variables, cwd=log.parent,
        )  # fmt: skip


async def _until_it_listens(process: "subprocess.Popen[bytes]", port: int) -> None:
    """Looked up and not tried: a connection that only tries would be its first client."""
    async with asyncio.timeout(START_TIMEOUT_S):
        while not _listens(process.pid, port):
            if process.poll() is not None:
                raise NotAvailable(f"{BINARY} ended with status {process.returncode}")
            await asyncio.sleep(POLL_S)


def _listens(pid: int, port: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return False
    fields = [line.split() for line in lines]
    return any(field[1].endswith(f":{port:04X}") and field[3] == LISTENING for field in fields)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
