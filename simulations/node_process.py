"""The inside of one node process of a local swarm: where it lives, what is wrong there, and the node itself.

Between the launcher (`local.py`), which holds the other end of a pipe, and the node's own daemon.
"""

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from shoal.experts.pieces.ranged import RangedPiece
from shoal.node.daemon import no_progress, running_node, until_stopped
from shoal.node.guest.sensors import MachineSensors
from shoal.node.host import host
from shoal.node.seeding.library import Library
from shoal.node.settings import GuestSettings, NodeSettings
from shoal.protocol.errors import ShoalError
from shoal.simulations.wan.namespace import die_with_parent, enter_network, mount_private_disk

DISK = Path("/mnt")
"""Where a node's private disk is mounted; nobody else sees it there, and it is gone with the node."""

LIES = "lies"
"""Where liars say how often they lied, among the launcher's temporary files."""

DIRECTORIES = {"XDG_STATE_HOME": "state", "XDG_RUNTIME_DIR": "run", "XDG_CACHE_HOME": "cache", "TMPDIR": "tmp"}
"""Everything that a node writes to."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node process lives."""

    address: str = "127.0.0.1"
    namespace: str | None = None
    """File of /proc that is its network namespace. None: this machine's own network."""
    clock_offset_s: float = 0.0
    """What its wall clock shows beyond ours from SIGUSR1 on, as if it had been set. Every `time.time` of its Python,
    that is; p2pd keeps no records."""
    is_clock_off: bool = False
    """It is off from the beginning."""
    is_lying: bool = False
    """It gives wrong bytes to every peer that asks it for weights; what it computes is right."""
    disk_bytes: int | None = None
    """It keeps its files (state, logs, cache, sockets) on a disk of its own of this size, and runs as `shoal node`
    does, with logs and control socket. None: on ours, bare."""


def node_main(settings: NodeSettings, place: Place, scratch: Path, connection: Connection) -> None:
    """A node process: tell the launcher when ready, end when told to, or when the launcher is gone."""
    import uvloop

    tempfile.tempdir = str(scratch)
    settings = replace(settings, host=place.address)
    if place.is_lying:
        give_wrong_bytes(scratch / LIES)
    try:
        settings = _move_in(settings, place)
    except OSError as error:
        connection.send((str(error), 1))
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_node(settings, place, connection))


def _move_in(settings: NodeSettings, place: Place) -> NodeSettings:
    """Make the place as it shall be, before any thread starts."""
    if place.namespace is not None:
        die_with_parent(signal.SIGKILL)  # it may be stopped when the launcher is killed
        enter_network(place.namespace)
    if place.is_clock_off:
        shift_clock(place.clock_offset_s)
    if place.disk_bytes is not None:
        mount_private_disk(DISK, place.disk_bytes)
        for variable, name in DIRECTORIES.items():
            (DISK / name).mkdir(0o700)
            os.environ[variable] = str(DISK / name)
        tempfile.tempdir = os.environ["TMPDIR"]
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # the log is a file on that disk too
        # tried here is the disk, and not this machine's owner
        guest = GuestSettings(low_priority=False, on_battery=True, on_metered=True, max_temperature_c=None)
        settings = replace(settings, guest=guest)
    return settings


def shift_clock(offset_s: float) -> None:
    """Let every `time.time` of this process, kept under whatever name, be off. hivemind keeps it as `get_dht_time`."""
    true_time = time.time

    def shifted() -> float:
        return true_time() + offset_s

    for module in tuple(sys.modules.values()):
        for name, value in tuple(vars(module).items()):
            if value is true_time:
                setattr(module, name, shifted)


def give_wrong_bytes(told: Path) -> None:
    """Let every piece that this process gives to peers have one wrong bit; `told` gets a byte for each."""
    true_read = Library.read

    def read(self: Library, digest: bytes) -> bytes | bytearray | None:
        piece = true_read(self, digest)
        if piece is None:
            return None
        with told.open("ab") as file:
            file.write(b".")
        wrong = bytearray(piece.read(0, len(piece)) if isinstance(piece, RangedPiece) else piece)
        wrong[len(wrong) // 2] ^= 1
        return wrong

    Library.read = read  # type: ignore[method-assign]


async def _node(settings: NodeSettings, place: Place, connection: Connection) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, shift_clock, place.clock_offset_s)
    loop.add_reader(connection.fileno(), stop.set)  # the launcher never writes: readable means gone
    is_hosted = place.disk_bytes is not None
    run = partial(host, progress=no_progress, read=MachineSensors(settings.guest)) if is_hosted else _run_bare
    try:
        await run(settings, stop, connection.send)
    except ShoalError as error:
        connection.send((str(error), error.exit_status))
    except OSError as error:  # a full disk, say: the launcher reports it
        connection.send((str(error), 1))
    finally:
        loop.remove_reader(connection.fileno())


async def _run_bare(settings: NodeSettings, stop: asyncio.Event, send: Callable[[object], None]) -> None:
    """Run a node until `stop`, then drain; SIGUSR2 asks for the node's counters."""
    loop = asyncio.get_running_loop()

    async def serve(is_ready: asyncio.Event) -> None:
        async with running_node(settings) as node:
            loop.add_signal_handler(signal.SIGUSR2, lambda: send(replace(node.metrics)))
            is_ready.set()
            send(node.info)
            await stop.wait()

    await until_stopped(serve, stop)
