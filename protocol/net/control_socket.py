"""The local control socket: a Unix socket in the owner's runtime directory, and never a port.

Who may speak is decided by the file system (directory 0700, socket 0600) and, where the kernel tells it, by the user id
at the other end. One node per name: a lock file is held for the node's life. Knows lines and limits; what a request
means is the node's.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import re
import socket
import stat
import struct
import warnings
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from platformdirs import user_runtime_path

from shoal.protocol.control import (
    MAX_REPLY_BYTES,
    MAX_REQUEST_BYTES,
    ControlReply,
    ControlRequest,
    Refused,
    decode_reply,
    decode_request,
    encode_control,
)
from shoal.protocol.errors import (
    ChannelClosed,
    DeadlineExceeded,
    InvalidRequest,
    NodeAlreadyRunning,
    NodeNotRunning,
    ShoalError,
)
from shoal.protocol.net.task_set import TaskSet

logger = logging.getLogger(__name__)

DEFAULT_NAME = "node"
"""The name of a machine's only node."""

MAX_CONNECTIONS = 32
"""A TUI, a status line and some scripts; more is a mistake of somebody's."""

REQUEST_TIMEOUT_S = 5.0
"""From connecting to a whole request, and for a reader who stops reading."""

REPLY_TIMEOUT_S = 30.0
"""Peers and coverage ask the directory, which takes a second or two."""

MAX_SOCKET_PATH_BYTES = 103
"""Of `sun_path`, with its final zero: 104 on macOS, 108 on Linux."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")

ControlHandler = Callable[[ControlRequest], AsyncGenerator[ControlReply, None]]
"""Answers one request. Closed when the asking program hangs up. A ShoalError is answered by Refused."""


def runtime_dir() -> Path:
    """Where sockets live: `$XDG_RUNTIME_DIR/shoal`, or what the platform has for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where there is none platformdirs takes /tmp, and we check whose that is
        return user_runtime_path("shoal")


def socket_path(directory: Path, name: str) -> Path:
    """The socket of the node of this name.

    Raises:
        InvalidRequest: no name for a file, or the path is too long for a socket.
    """
    if _NAME.fullmatch(name) is None:
        raise InvalidRequest(f"{name!r} is no name for a node; use letters, digits, '.', '_' and '-', at most 32")
    path = directory / f"{name}.sock"
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise InvalidRequest(f"{path} is too long for a socket; set XDG_RUNTIME_DIR to a shorter directory")
    return path


def running_names(directory: Path) -> list[str]:
    """Names of nodes that have a socket here; one that was killed may be among them."""
    return sorted(path.stem for path in directory.glob("*.sock"))


@asynccontextmanager
async def control_server(directory: Path, name: str, handle: ControlHandler) -> AsyncIterator[Path]:
    """Answer requests on the socket of `name` inside the `with`.

    Raises:
        NodeAlreadyRunning: another process holds the name. InvalidRequest: the directory is not ours alone.

    Limits: 32 connections, one request of 4 KiB each.
    """
    path = socket_path(directory, name)
    _make_private(directory)
    with _locked(path.with_suffix(".lock"), name):
        path.unlink(missing_ok=True)  # of a node that was killed: we hold its lock
        listening = _bind(path)
        tasks = TaskSet()
        server = await asyncio.start_unix_server(_acceptor(handle, tasks), sock=listening, limit=MAX_REQUEST_BYTES)
        try:
            yield path
        finally:
            server.close()
            await tasks.aclose()
            path.unlink(missing_ok=True)


async def ask(directory: Path, name: str, request: ControlRequest) -> ControlReply:
    """Send one request and return the first reply.

    Raises:
        NodeNotRunning: nobody listens. ControlRefused: the node said no. DeadlineExceeded: it is stuck.
    """
    try:
        async with asyncio.timeout(REPLY_TIMEOUT_S):
            async with contextlib.aclosing(follow(directory, name, request)) as replies:
                async for reply in replies:
                    return reply
    except TimeoutError:
        raise DeadlineExceeded(f"the node {name} did not answer in {REPLY_TIMEOUT_S:.0f} s") from None
    raise ChannelClosed(f"the node {name} hung up without an answer")


async def follow(directory: Path, name: str, request: ControlRequest) -> AsyncGenerator[ControlReply, None]:
    """Send one request and give every reply until the node closes.

    Raises:
        NodeNotRunning: nobody listens. ControlRefused: the node said no. Malformed: not our protocol.
    """
    path = socket_path(directory, name)
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=MAX_REPLY_BYTES)
    except OSError:  # no socket, or nobody behind it
        raise NodeNotRunning(name) from None
    try:
        if not _is_ours(writer):
            raise InvalidRequest(f"{path} belongs to another user")
        writer.write(encode_control(request))
        while line := await _read_line(reader):
            reply = decode_reply(line)
            if isinstance(reply, Refused):
                raise ControlRefused(reply)
            yield reply
    except OSError as error:
        raise ChannelClosed(f"the node {name} has ended") from error
    finally:
        writer.close()


class ControlRefused(ShoalError):
    """The node refused what it was asked, in its own words and with its own status."""

    def __init__(self, reply: Refused) -> None:
        super().__init__(reply.message)
        self.exit_status = reply.exit_status  # type: ignore[misc]  # per instance: the node's own error decides


def _make_private(directory: Path) -> None:
    """Make the directory, or check that it is a directory of ours that nobody else can enter."""
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700, parents=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise InvalidRequest(f"{directory} is not a directory of this user's; remove it")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise InvalidRequest(f"{directory} is open to other users; try: chmod 700 {directory}")


@contextlib.contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    """Hold the name; the kernel lets go of it when the process ends, however it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NodeAlreadyRunning(name) from None
        yield


def _bind(path: Path) -> socket.socket:
    """A listening socket that was never open to others: nobody can enter the directory before the mode is set."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(path))
        path.chmod(0o600)
    except BaseException:
        listening.close()
        raise
    return listening


def _acceptor(handle: ControlHandler, tasks: TaskSet) -> Callable[[StreamReader, StreamWriter], None]:
    def accept(reader: StreamReader, writer: StreamWriter) -> None:
        if len(tasks) >= MAX_CONNECTIONS or not _is_ours(writer):
            writer.transport.abort()
        else:
            tasks.start(_serve(reader, writer, handle), "control connection")

    return accept


async def _serve(reader: StreamReader, writer: StreamWriter, handle: ControlHandler) -> None:
    """One connection: a request, its replies, the end."""
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            line = await _read_line(reader)
        if line:
            await _until_hang_up(reader, _answer(line, writer, handle))
    except (OSError, TimeoutError):  # it went away, or said nothing
        pass
    except ShoalError as error:
        writer.write(encode_control(Refused(str(error), error.exit_status)))
    except Exception as error:  # a bug of the handler's must not end the node
        logger.exception("a control request failed")
        writer.write(encode_control(Refused(f"the node failed: {type(error).__name__}; see its log")))
    finally:
        writer.close()


async def _answer(line: bytes, writer: StreamWriter, handle: ControlHandler) -> None:
    async with contextlib.aclosing(handle(decode_request(line))) as replies:
        async for reply in replies:
            writer.write(encode_control(reply))
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await writer.drain()


async def _until_hang_up(reader: StreamReader, answering: Coroutine[object, object, None]) -> None:
    """Run `answering` to its end, or until the other side closes."""
    answer = asyncio.create_task(answering)
    hang_up = asyncio.create_task(reader.read(1))
    try:
        await asyncio.wait({answer, hang_up}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            await answer
    finally:
        for task in (answer, hang_up):
            task.cancel()
        await asyncio.wait({answer, hang_up})


async def _read_line(reader: StreamReader) -> bytes:
    """One line without its end; empty at the end of the stream.

    Raises:
        InvalidRequest: longer than the limit.
    """
    try:
        line = await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError:
        return b""
    except asyncio.LimitOverrunError:
        raise InvalidRequest("a line of the control protocol is too long") from None
    return line.rstrip(b"\n")


def _is_ours(writer: StreamWriter) -> bool:
    """Whether the other end runs as our user. Where the kernel does not say (macOS), the directory's mode decides."""
    connection = writer.get_extra_info("socket")
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    credentials = struct.Struct("3i")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    _pid, uid, _gid = credentials.unpack(raw)
    return bool(uid == os.getuid())
