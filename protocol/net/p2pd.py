"""One libp2p daemon of ours: hivemind's `p2pd` binary (go-libp2p) under our own Ed25519 identity.

It carries the directory (`hivemind_dht.py`) and the data path where no direct connection is possible (`libp2p.py`).
We start the process ourselves and hand hivemind its control socket: then the key file, the port check and the end of
the process are ours even when the start fails or is cancelled. Knows no frames, no records and no channels.
"""

import asyncio
import contextlib
import errno
import importlib.util
import logging
import os
import shutil
import socket
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.protocol.errors import AddressInUse, AuthenticationFailed, InvalidRequest
from shoal.protocol.identity import Identity
from shoal.protocol.ids import PeerId
from shoal.protocol.net.hivemind_loader import PACKAGE, load_hivemind_in_thread

if TYPE_CHECKING:
    from hivemind.p2p import P2P

STOP_TIMEOUT_S = 2.0
"""p2pd ends within 50 ms of SIGTERM; after this it is killed."""

IDLE_TIMEOUT_S = 30
"""p2pd ends by itself if we never open, or lose, our persistent connection to it: no orphan after a SIGKILL of ours."""

PROCESSORS = "1"
"""Go's threads that run at a time, unless GOMAXPROCS is set: what one part of p2pd hands to the next (Unix socket,
multiplexer, TLS, TCP) then wakes no other thread, which takes 0.87 of the time at 14 KiB; and p2pd takes one of a
volunteer's cores at most. It needs 0.1 ms of that core for such an exchange (docs/adr/0036)."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class P2pdSettings:
    """How the daemon listens and how far it goes to be reachable."""

    host: str = "127.0.0.1"
    """IPv4 or IPv6 address to listen on. Loopback, so that nobody is on the internet by accident; 0.0.0.0 for all."""
    port: int = 0
    """TCP port, 0 for any free one. TCP only: the binary's QUIC is of 2023 and gets no fixes (transport §7)."""
    announce: tuple[str, ...] = ()
    """Multiaddrs that peers shall dial instead of ours, behind a forwarded port; empty: what we listen on."""
    use_relay: bool = False
    """Reach peers, and be reached, through relays. Off: a node in a school needs none."""
    trusted_relays: tuple[str, ...] = ()
    """Multiaddrs of the relays to use, with `use_relay`."""
    use_port_mapping: bool = False
    """Ask the router for a port by UPnP or NAT-PMP. Off: it opens a door in somebody's firewall."""
    use_auto_nat: bool = False
    """Help others find out whether they are reachable."""
    start_timeout_s: float = 15.0
    """From process start to peer id; it takes 0.1-0.4 s."""


@dataclass(slots=True)
class P2pd:
    """A running daemon. `peer` is our own peer id; `addresses` are multiaddrs that end in `/p2p/<peer>`."""

    p2p: "P2P"
    peer: PeerId
    addresses: tuple[str, ...]
    control_path: Path
    """Unix socket for `p2pd_control.py`, in a directory that only we can enter."""
    _process: Process
    _output: asyncio.Task[None]
    _is_closed: bool = field(default=False)

    @property
    def is_alive(self) -> bool:
        """False once the process has ended, whoever ended it."""
        return self._process.returncode is None

    @property
    def pid(self) -> int:
        """Process id of the daemon."""
        return self._process.pid

    async def aclose(self) -> None:
        """End the daemon and with it every stream and the directory. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            await self.p2p.shutdown()
        finally:
            await _stop(self._process)
            self._output.cancel()
            await asyncio.wait([self._output])
            await asyncio.to_thread(shutil.rmtree, self.control_path.parent, ignore_errors=True)


async def start_p2pd(identity: Identity, settings: P2pdSettings | None = None) -> P2pd:
    """Start a daemon under our identity and wait until it listens.

    Raises:
        AddressInUse: another program has the port. InvalidRequest: the host is no address of this machine, or p2pd
        does not run here. AuthenticationFailed: p2pd came up under another identity.

    Cancellation: no process and no file is left.
    """
    settings = settings or P2pdSettings()
    _check_port_is_free(settings)
    directory = Path(tempfile.mkdtemp(prefix="shoal-"))  # mode 0700
    process: Process | None = None
    try:
        async with asyncio.timeout(settings.start_timeout_s):
            process = await _spawn(identity, settings, directory)
            importing = asyncio.create_task(load_hivemind_in_thread())  # meanwhile: 1 s if torch is not loaded yet
            try:
                await _wait_until_ready(process, settings)
            finally:
                await asyncio.wait([importing])
            importing.result()
            return await _attach(identity, process, directory)
    except BaseException as error:
        if process is not None:
            await _stop(process)
        shutil.rmtree(directory, ignore_errors=True)
        if isinstance(error, TimeoutError):
            raise InvalidRequest(f"p2pd did not start within {settings.start_timeout_s:.0f} s") from error
        raise


def _check_port_is_free(settings: P2pdSettings) -> None:
    """go-libp2p listens with SO_REUSEPORT: two daemons would silently share a port and each get half of the peers."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    address = f"{settings.host}:{settings.port}"
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a predecessor may linger
        try:
            probe.bind((settings.host, settings.port))
        except (OSError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                raise AddressInUse(address) from error
            raise InvalidRequest(f"can not listen on {address}: {error}") from error


async def _spawn(identity: Identity, settings: P2pdSettings, directory: Path) -> Process:
    key_file = directory / "identity"
    _write_secret(key_file, identity.libp2p_private_key())
    return await asyncio.create_subprocess_exec(
        find_p2pd(),
        *_flags(settings, directory, key_file),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
        start_new_session=True,  # Ctrl-C is for us, who then drain; p2pd lives until then (uvloop: no process_group)
        env={"GOMAXPROCS": PROCESSORS, **os.environ, "GOLOG_LOG_LEVEL": "error"},
    )


def _write_secret(path: Path, secret: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)


def find_p2pd() -> Path:
    """Path of p2pd inside the hivemind wheel, found without importing hivemind."""
    spec = importlib.util.find_spec(PACKAGE)
    locations = spec.submodule_search_locations if spec is not None else None
    for location in locations or ():
        path = Path(location) / "hivemind_cli" / "p2pd"
        if path.is_file():
            return path
    raise InvalidRequest("hivemind is not installed, or its wheel has no p2pd for this platform")


def _flags(settings: P2pdSettings, directory: Path, key_file: Path) -> list[str]:
    version = "ip6" if ":" in settings.host else "ip4"
    flags = {
        "listen": f"/unix{directory}/control.sock",
        "id": str(key_file),
        "hostAddrs": f"/{version}/{settings.host}/tcp/{settings.port}",
        "announceAddrs": ",".join(settings.announce),
        "trustedRelays": ",".join(settings.trusted_relays),
        "idleTimeout": f"{IDLE_TIMEOUT_S}s",
        "dhtServer": "1",  # go-libp2p's own routing: how one peer learns another's address from its id
        "b": "0",  # no public bootstrap peers, ever
        "connManager": "1",
        "tls": "1",
        "noise": "0",  # asked first where there are both, and slower: AES is in hardware, ChaCha20 is not
        "relay": str(int(settings.use_relay)),
        "autoRelay": str(int(settings.use_relay and bool(settings.trusted_relays))),
        "relayService": str(int(settings.use_relay)),
        "autonat": str(int(settings.use_auto_nat)),
        "natPortMap": str(int(settings.use_port_mapping)),
    }
    return [f"-{name}={value}" for name, value in flags.items() if value]


async def _wait_until_ready(process: Process, settings: P2pdSettings) -> None:
    line = ""
    async for line in _lines(process):
        if line.startswith("Peer ID:"):
            return
    if "address already in use" in line:
        raise AddressInUse(f"{settings.host}:{settings.port}")
    raise InvalidRequest(f"p2pd did not start: {line or 'it said nothing'}")


async def _attach(identity: Identity, process: Process, directory: Path) -> P2pd:
    from hivemind.p2p import P2P
    from hivemind.utils.multiaddr import Multiaddr

    (directory / "identity").unlink()
    control_path = directory / "control.sock"
    p2p = await P2P.replicate(Multiaddr(f"/unix{control_path}"))
    control = p2p._client.control
    for task in (control._read_task, control._write_task):
        task.add_done_callback(_forget_outcome)
    peer = PeerId(p2p.peer_id.to_base58())
    if peer != identity.peer:
        await p2p.shutdown()
        raise AuthenticationFailed(f"p2pd is {peer} instead of {identity.peer}")
    addresses = tuple(str(address) for address in await p2p.get_visible_maddrs())
    output = asyncio.create_task(_log_output(process), name="p2pd output")
    return P2pd(p2p, peer, addresses, control_path, process, output)


def _forget_outcome(task: "asyncio.Task[None]") -> None:
    """hivemind awaits these tasks never; when p2pd dies, asyncio would print their errors on the user's terminal."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.debug("hivemind lost p2pd: %r", error)


async def _log_output(process: Process) -> None:
    """Keep the pipe empty, or p2pd would block on it."""
    async for line in _lines(process):
        _log.debug("p2pd: %s", line)


async def _lines(process: Process) -> AsyncIterator[str]:
    """Lines that the daemon prints, until it ends; longer ones than 64 KiB in pieces."""
    stdout = process.stdout
    while stdout is not None and (data := await _read_line(stdout)):
        yield data.decode(errors="replace").rstrip()


async def _read_line(stdout: asyncio.StreamReader) -> bytes:
    try:
        return await stdout.readuntil()
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError as error:
        return await stdout.readexactly(error.consumed)


async def _stop(process: Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    await process.wait()
