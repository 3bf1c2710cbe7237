"""One p2pd under our identity: it listens, says who it is, and leaves nothing behind."""

import asyncio
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest
import uvloop

from shoal.protocol.errors import AddressInUse, InvalidRequest
from shoal.protocol.identity import Identity
from shoal.protocol.net import p2pd
from shoal.protocol.net.hivemind_loader import load_hivemind
from shoal.protocol.net.p2pd import P2pdSettings, start_p2pd

pytestmark = pytest.mark.socket

IDENTITY = Identity.from_seed(bytes(31) + b"\x01")


@pytest.fixture(autouse=True)
def private_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A short temporary directory of our own, so that leftovers can be counted."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def leftovers(tmp: Path, name: str = "*") -> list[Path]:
    return list(tmp.rglob(name))


@pytest.mark.parametrize("run_loop", [asyncio.run, uvloop.run])
def test_it_listens_under_our_identity_and_ends_without_a_trace(
    private_tmp: Path, run_loop: Callable[[Coroutine[object, object, None]], None]
) -> None:
    async def run() -> None:
        daemon = await start_p2pd(IDENTITY)
        assert daemon.peer == IDENTITY.peer
        assert len(daemon.addresses) == 1
        address = daemon.addresses[0]
        assert address.startswith("/ip4/127.0.0.1/tcp/")
        assert address.endswith(f"/p2p/{IDENTITY.peer}")
        assert daemon.is_alive
        assert not leftovers(private_tmp, "identity")
        pid = daemon.pid
        await daemon.aclose()
        await daemon.aclose()
        assert not daemon.is_alive
        assert not is_running(pid)
        assert not leftovers(private_tmp)

    run_loop(run())


def test_the_key_file_is_ours_alone_while_it_exists(private_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    original = p2pd._wait_until_ready

    async def spy(*arguments: object) -> None:
        (file,) = leftovers(private_tmp, "identity")
        modes.extend([file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777])
        await original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(p2pd, "_wait_until_ready", spy)

    async def run() -> None:
        await (await start_p2pd(IDENTITY)).aclose()

    asyncio.run(run())
    assert modes == [0o600, 0o700]


def test_a_port_in_use_is_named_even_if_its_owner_is_another_p2pd(private_tmp: Path) -> None:
    async def run() -> None:
        daemon = await start_p2pd(IDENTITY)
        port = int(daemon.addresses[0].split("/")[4])
        with pytest.raises(AddressInUse, match=f"127.0.0.1:{port}"):
            await start_p2pd(Identity.from_seed(bytes(32)), P2pdSettings(port=port))
        await daemon.aclose()
        again = await start_p2pd(IDENTITY, P2pdSettings(port=port))
        await again.aclose()

    asyncio.run(run())
    assert not leftovers(private_tmp)


@pytest.mark.parametrize("settings", [P2pdSettings(host="203.0.113.1"), P2pdSettings(host="x"), P2pdSettings(port=-1)])
def test_an_impossible_address_is_the_users_error(settings: P2pdSettings) -> None:
    with pytest.raises(InvalidRequest, match="can not listen on"):
        asyncio.run(start_p2pd(IDENTITY, settings))


@pytest.mark.parametrize("daemon_does", ["says nothing", "fails", "is of another identity"])
def test_a_start_that_fails_leaves_no_process_and_no_file(
    daemon_does: str, private_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = {
        "says nothing": (sys.executable, ["-c", "import time; time.sleep(60)"]),
        "fails": (sys.executable, ["-c", "print('no such luck')"]),
        "is of another identity": (str(p2pd.find_p2pd()), None),
    }
    binary, arguments = scripts[daemon_does]
    processes = []
    original = asyncio.create_subprocess_exec

    async def spawn(*command: str, **options: object) -> asyncio.subprocess.Process:
        flags = [flag for flag in command[1:] if not flag.startswith("-id=")] if arguments is None else arguments
        processes.append(await original(binary, *flags, **options))  # type: ignore[arg-type]
        return processes[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", spawn)
    with pytest.raises(Exception, match=r"did not start within 1 s|no such luck|instead of"):
        asyncio.run(start_p2pd(IDENTITY, P2pdSettings(start_timeout_s=1.0)))
    assert processes[0].returncode is not None
    assert not leftovers(private_tmp)


def test_a_start_that_is_cancelled_leaves_no_process_and_no_file(
    private_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawned: list[int] = []
    original = p2pd._wait_until_ready

    async def run() -> None:
        starting = asyncio.create_task(start_p2pd(IDENTITY))

        async def cancel_now(process: asyncio.subprocess.Process, settings: P2pdSettings) -> None:
            spawned.append(process.pid)
            starting.cancel()
            await original(process, settings)

        monkeypatch.setattr(p2pd, "_wait_until_ready", cancel_now)
        with pytest.raises(asyncio.CancelledError):
            await starting

    asyncio.run(run())
    assert not is_running(spawned[0])
    assert not leftovers(private_tmp)


CHILD = """
import asyncio, logging, sys
from shoal.protocol.identity import Identity
from shoal.protocol.net.p2pd import start_p2pd
async def main():
    daemon = await start_p2pd(Identity.from_seed(bytes(32)))
    import hivemind.p2p
    logging.getLogger("hivemind.p2p").error("a line of hivemind")
    print(daemon.pid, "scipy" in sys.modules, logging.getLevelName(logging.WARNING), flush=True)
    if "wait" in sys.argv:
        await asyncio.sleep(60)
    await daemon.aclose()
    from hivemind import DHT, __version__  # the light package becomes the full one when asked
    print(DHT.__name__, flush=True)
asyncio.run(main())
"""


def child_environment(tmp: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(tmp), "PYTHONPATH": os.pathsep.join(sys.path)}


def test_hivemind_says_nothing_to_the_user_and_loads_no_scipy(private_tmp: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env=child_environment(private_tmp), capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    words = done.stdout.split()
    assert words[1:] == ["False", "WARNING", "DHT"]


def test_hivemind_is_heard_when_debugging() -> None:
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    shoal, root, hivemind = (logging.getLogger(name) for name in ("shoal", None, "hivemind.p2p"))
    root.addHandler(handler)
    try:
        for level in (logging.NOTSET, logging.DEBUG, logging.NOTSET):
            shoal.setLevel(level)
            load_hivemind()
            hivemind.error("at %s", logging.getLevelName(level))
    finally:
        root.removeHandler(handler)
    assert heard == ["at DEBUG"]


def test_the_daemon_dies_with_a_parent_that_is_killed(private_tmp: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, "wait"], env=child_environment(private_tmp), stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline().split()[0])
        parent.send_signal(signal.SIGKILL)
        parent.wait()

    deadline = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _start_in_child(results: multiprocessing.connection.Connection) -> None:
    async def run() -> str:
        daemon = await start_p2pd(IDENTITY)
        await daemon.aclose()
        return daemon.peer

    results.send(("torch" in sys.modules, asyncio.run(run())))


def test_a_forkserver_that_has_loaded_hivemind_starts_nodes() -> None:
    """How the demo starts its nodes: the import is paid once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["shoal.protocol.net.p2pd", "hivemind.dht.node", __name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_start_in_child, args=(sender,))
    process.start()
    sender.close()
    assert receiver.poll(30)
    assert receiver.recv() == (True, IDENTITY.peer)
    process.join(10)
    assert process.exitcode == 0


def test_a_busy_port_of_a_program_without_reuseport_is_named_too() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(AddressInUse):
            asyncio.run(start_p2pd(IDENTITY, P2pdSettings(port=other.getsockname()[1])))
