"""A network of hosts for one `with`: the relay's process and the way into each host's namespace."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess

from shoal.protocol.errors import InvalidRequest
from shoal.simulations.wan.link import Link
from shoal.simulations.wan.relay import LinkChange, RelayFailed, RelayReady, address_of, relay_main

START_TIMEOUT_S = 60.0
"""The fork server imports torch and hivemind first."""

STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Host:
    """Where a process of the network lives: its address, and the file of /proc that is its namespace."""

    index: int
    address: str
    namespace: str


class Network:
    """Hosts and their links. Made by `open_network`."""

    def __init__(self, hosts: Sequence[Host], links: Sequence[Link], connection: Connection, relay_pid: int) -> None:
        self.hosts = tuple(hosts)
        self.relay_pid = relay_pid
        self._links = list(links)
        self._connection = connection

    def link(self, host: int) -> Link:
        """As it is now."""
        return self._links[host]

    def set_link(self, host: int, link: Link) -> None:
        """From now on; packets under way arrive as they would have."""
        self._links[host] = link
        self._connection.send(LinkChange(host, link))


@asynccontextmanager
async def open_network(context: ForkServerContext, links: Sequence[Link], seed: int) -> AsyncIterator[Network]:
    """One host per link. `seed`: of the losses.

    Raises:
        InvalidRequest: this process may not make namespaces.

    The network ends with the `with`, and when this process does, however that happens.
    """
    ours, theirs = context.Pipe()
    process = context.Process(target=relay_main, args=(tuple(links), seed, theirs), name="shoal-relay", daemon=True)
    try:
        await asyncio.to_thread(process.start)
        theirs.close()
        said = await asyncio.to_thread(_receive, ours)
        if not isinstance(said, RelayReady):
            raise InvalidRequest(f"no network of namespaces: {said.reason if isinstance(said, RelayFailed) else said}")
        hosts = [
            Host(index, address_of(index), f"/proc/{said.pid}/fd/{file}") for index, file in enumerate(said.namespaces)
        ]
        yield Network(hosts, links, ours, said.pid)
    finally:
        ours.close()  # the relay's word to end
        await asyncio.shield(asyncio.to_thread(_end, process))


def _receive(connection: Connection) -> object:
    try:
        return connection.recv() if connection.poll(START_TIMEOUT_S) else "it said nothing"
    except EOFError:
        return "it ended without a word"


def _end(process: BaseProcess) -> None:
    if process.pid is None:
        return
    process.join(STOP_TIMEOUT_S)
    if process.is_alive():
        process.kill()
        process.join()
