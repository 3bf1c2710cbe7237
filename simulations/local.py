"""A swarm of real processes on this machine: real nodes, real DHT, real TLS, killable by pid.

Nodes are forked from one process that has imported everything once (`multiprocessing`'s fork server): importing torch
and hivemind takes two to four seconds of CPU, which five fresh interpreters on two cores would pay five times. Each
node holds one end of a pipe and ends when the other end does, so no node outlives a launcher that was killed.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import repeat
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from shoal.node.metrics import NodeMetrics
from shoal.node.node_info import NodeInfo
from shoal.node.settings import NodeSettings
from shoal.protocol.errors import InvalidRequest, ShoalError
from shoal.simulations.node_process import Place, node_main
from shoal.simulations.scratch import scratch_directory

START_TIMEOUT_S = 120.0
"""From fork to ready: a large checkpoint on a busy machine."""

STOP_TIMEOUT_S = 10.0
"""Twice the grace that a node gives to requests in flight; then SIGKILL."""


class NodeFailed(ShoalError):
    """A node process could not start; carries what the node said, and its exit status."""

    def __init__(self, reason: str, exit_status: int) -> None:
        super().__init__(f"a node could not start: {reason}")
        self.exit_status = exit_status  # type: ignore[misc]  # per instance: the node's own error decides


@dataclass(slots=True)
class LocalNode:
    """One node process."""

    process: BaseProcess
    info: NodeInfo
    p2pd: psutil.Process
    experts: str
    """What it holds, as `--experts` words."""
    place: Place
    connection: Connection = field(repr=False)
    """What it says. One listener at a time."""

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def kill(self) -> None:
        """SIGKILL, as a power cut would. Its p2pd notices within seconds, or when the swarm ends."""
        os.kill(self.pid, signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP: it answers nothing and closes nothing, like a machine that hangs."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def set_clock_wrong(self) -> None:
        """Its wall clock jumps by what its place says."""
        os.kill(self.pid, signal.SIGUSR1)

    async def metrics(self) -> NodeMetrics:
        """Its counters, of a node without a disk of its own.

        Raises:
            NodeFailed: it says nothing, or is gone.
        """
        os.kill(self.pid, signal.SIGUSR2)
        said = await asyncio.to_thread(_receive, self.connection)
        if not isinstance(said, NodeMetrics):
            raise NodeFailed(f"its counters are {said!r}", 1)
        return said

    async def leave(self) -> None:
        """SIGTERM, and wait until it has drained."""
        self.process.terminate()
        await asyncio.to_thread(self.process.join, STOP_TIMEOUT_S)


@dataclass(slots=True)
class _Child:
    """A node process from its fork to its end; `node` once it is ready."""

    process: BaseProcess
    connection: Connection
    node: LocalNode | None = None


@dataclass(frozen=True, slots=True)
class LocalSwarmSettings:
    """What a local swarm is made of."""

    model: Path
    num_nodes: int = 4
    replicas: int = 2
    cache_dir: Path | None = None
    threads: int = 1
    """Kernel threads of each process: they share this machine's cores, and idle threads of torch spin."""
    join: tuple[str, ...] = ()
    """A swarm that the first node joins. None: it begins one."""
    experts: str | None = None
    """What every node holds, as `--experts` words. None: equal parts, `replicas` times."""


def holdings(num_nodes: int, replicas: int, num_experts: int) -> list[str]:
    """Who holds which experts (of every layer), as `--experts` words: N // R equal parts, dealt in turn.

    Raises:
        InvalidRequest: fewer nodes than replicas.
    """
    if not 1 <= replicas <= num_nodes:
        raise InvalidRequest(f"{replicas} replicas of every expert need at least as many nodes, not {num_nodes}")
    num_parts = min(num_nodes // replicas, num_experts)
    bounds = [num_experts * i // num_parts for i in range(num_parts + 1)]
    return [f"{bounds[i % num_parts]}-{bounds[i % num_parts + 1] - 1}" for i in range(num_nodes)]


@asynccontextmanager
async def local_swarm(
    context: ForkServerContext, settings: LocalSwarmSettings, num_experts: int
) -> AsyncIterator[list[LocalNode]]:
    """Start the nodes, give them, end them.

    Raises:
        NodeFailed: a node could not start; the others are ended.
    """
    async with launcher(context, settings) as launch:
        yield await launch.all([Place()] * settings.num_nodes, num_experts)


@asynccontextmanager
async def launcher(context: ForkServerContext, settings: LocalSwarmSettings) -> AsyncIterator["Launcher"]:
    """What starts nodes, one by one; all of them end with the `with`."""
    children: list[_Child] = []
    with scratch_directory() as scratch:
        try:
            yield Launcher(context, settings, scratch, children)
        finally:
            await asyncio.shield(asyncio.to_thread(_end, children))


class Launcher:
    """Starts nodes. Made by `launcher`."""

    def __init__(
        self, context: ForkServerContext, settings: LocalSwarmSettings, scratch: Path, children: list[_Child]
    ) -> None:
        self.scratch = scratch
        """Where its processes keep their temporary files."""
        self._context = context
        self._settings = settings
        self._children = children

    async def all(self, places: Sequence[Place], num_experts: int) -> list[LocalNode]:
        """Start a whole swarm, a node in each place: the first, then the others together, which join it.

        Raises:
            InvalidRequest: fewer places than replicas. NodeFailed: a node could not start.
        """
        settings = self._settings
        parts = holdings(len(places), settings.replicas, num_experts)
        words = parts if settings.experts is None else [settings.experts] * len(places)
        first = await self.start(words[0], settings.join, places[0])
        rest = [self.start(*each) for each in zip(words[1:], repeat(first.info.join), places[1:], strict=False)]
        return [first, *await asyncio.gather(*rest)]

    async def start(self, experts: str, join: Sequence[str], place: Place, model: Path | None = None) -> LocalNode:
        """Start one node and wait until it serves. experts: as `--experts` words. model: None is that of all.

        Raises:
            NodeFailed: it could not start.
        """
        settings = NodeSettings(
            model=model or self._settings.model,
            experts=experts,
            join=tuple(join),
            cache_dir=self._settings.cache_dir,
            threads=self._settings.threads,
        )
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=node_main, args=(settings, place, self.scratch, theirs), name="shoal-node"
        )
        await asyncio.to_thread(process.start)
        child = _Child(process, ours)
        self._children.append(child)
        theirs.close()
        said = await asyncio.to_thread(_receive, ours)
        if isinstance(said, NodeInfo):
            child.node = LocalNode(process, said, psutil.Process(said.p2pd_pid), experts, place, ours)
            return child.node
        if isinstance(said, tuple):
            raise NodeFailed(*said)
        raise NodeFailed("it ended without a word", 1)


def _receive(connection: Connection) -> object:
    try:
        return connection.recv() if connection.poll(START_TIMEOUT_S) else None
    except EOFError:
        return None


def _end(children: Sequence[_Child]) -> None:
    """SIGTERM to all, then wait, then SIGKILL to who is left; the p2pd of those that were killed goes with them."""
    for child in children:
        child.process.terminate()
        if child.node is not None and child.process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                child.node.thaw()  # one that was frozen hears SIGTERM only then
    for child in children:
        child.process.join(STOP_TIMEOUT_S)
        if child.process.is_alive():
            child.process.kill()
            child.process.join()
        child.connection.close()
        if child.node is not None and child.process.exitcode != 0:
            _end_p2pd(child.node.p2pd)


def _end_p2pd(p2pd: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):  # most often it is gone already
        p2pd.terminate()
        p2pd.wait(STOP_TIMEOUT_S)
