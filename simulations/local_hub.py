"""A Hugging Face hub on loopback: revisions, redirects to a content network, ranges; and every way of failing at it.

For tests and rehearsals: what a source of weights does when the hub is slow, lies or breaks off. Serves one folder as
one repository. Speaks as much HTTP/1.1 as clients of the hub use: GET, Range, one request a connection.
"""

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPOSITORY = "shoal/rehearsal"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISION = "main"

CHUNK_BYTES = 1024 * 1024


class Fault(Enum):
    """What the hub does to one request for bytes of a file."""

    NOT_FOUND = "404"
    EXPIRED_TOKEN = "401"
    RATE_LIMIT = "429 with Retry-After: 0"
    BROKEN = "500"
    REDIRECT_LOOP = "a redirect to itself"
    STALL = "half of the bytes, then nothing"
    TRUNCATE = "half of the bytes, then the end of the connection"
    OTHER_RANGE = "a byte less than was asked for, and says so"
    TOO_LONG = "bytes beyond the range, without a length"
    FLIPPED_BIT = "one bit is wrong"
    NO_RANGES = "200 and the whole file"
    CLOSE = "the connection ends at once"


@dataclass(slots=True)
class LocalHub:
    """A running hub. `faults` are used up, one a request; `faults_always` is not."""

    folder: Path
    port: int = 0
    token: str | None = None
    """If set, requests without it get 401."""
    faults: deque[Fault] = field(default_factory=deque)
    faults_always: Fault | None = None
    num_requests: int = 0
    body_bytes: int = 0
    """Of all files' bodies that were sent, headers of files included."""
    tokens_at_content_network: int = 0
    """Requests that carried a token to where the hub redirects."""

    @property
    def endpoint(self) -> str:
        """The value for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def local_hub(folder: Path, token: str | None = None) -> AsyncIterator[LocalHub]:
    """Serve a folder until the end of the `with`; connections that are still open then are closed."""
    hub = LocalHub(folder, token=token)
    content = await asyncio.start_server(lambda reader, writer: _serve(hub, reader, writer, True), "127.0.0.1", 0)
    content_port = content.sockets[0].getsockname()[1]
    front = await asyncio.start_server(
        lambda reader, writer: _serve(hub, reader, writer, False, content_port), "127.0.0.1", 0
    )
    hub.port = front.sockets[0].getsockname()[1]
    tasks = asyncio.all_tasks()
    try:
        yield hub
    finally:
        for server in (front, content):
            server.close()
        serving = [task for task in asyncio.all_tasks() - tasks if task.get_name().startswith("local hub")]
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        for server in (front, content):
            await server.wait_closed()


async def _serve(
    hub: LocalHub,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    is_content: bool,
    content_port: int = 0,
) -> None:
    task = asyncio.current_task()
    if task is not None:
        task.set_name("local hub")
    try:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
            path = unquote(urlsplit(head[0].split(" ")[1]).path)
            if is_content:
                hub.tokens_at_content_network += "authorization" in headers
                await _send_file(hub, writer, path.lstrip("/"), headers.get("range"))
            else:
                await _front(hub, writer, path, headers, content_port)
            await writer.drain()
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _front(
    hub: LocalHub, writer: asyncio.StreamWriter, path: str, headers: dict[str, str], content_port: int
) -> None:
    """The hub itself: says which commit a revision is, and where a file's bytes are."""
    hub.num_requests += 1
    if hub.token is not None and headers.get("authorization") != f"bearer {hub.token}".lower():
        return _answer(writer, "401 Unauthorized", {})
    if path == f"/api/models/{REPOSITORY}/revision/{REVISION}":
        return _answer(writer, "200 OK", {}, b'{"sha": "%s"}' % COMMIT.encode())
    prefix = f"/{REPOSITORY}/resolve/{COMMIT}/"
    if not path.startswith(prefix):
        return _answer(writer, "404 Not Found", {})
    file = path.removeprefix(prefix)
    fault = None
    if file.endswith(".safetensors"):
        fault = hub.faults.popleft() if hub.faults else hub.faults_always
    match fault:
        case Fault.NOT_FOUND:
            return _answer(writer, "404 Not Found", {})
        case Fault.EXPIRED_TOKEN:
            return _answer(writer, "401 Unauthorized", {})
        case Fault.RATE_LIMIT:
            return _answer(writer, "429 Too Many Requests", {"Retry-After": "0"})
        case Fault.BROKEN:
            return _answer(writer, "500 Internal Server Error", {})
        case Fault.REDIRECT_LOOP:
            hub.faults.appendleft(Fault.REDIRECT_LOOP)
            return _answer(writer, "302 Found", {"Location": path})
        case Fault.CLOSE:
            return None
        case None:
            return _answer(writer, "302 Found", {"Location": f"http://127.0.0.1:{content_port}/{file}"})
        case _:
            return await _send_file(hub, writer, file, headers.get("range"), fault)


async def _send_file(
    hub: LocalHub, writer: asyncio.StreamWriter, file: str, wanted: str | None, fault: Fault | None = None
) -> None:
    path = hub.folder / file
    if not path.is_file():
        return _answer(writer, "404 Not Found", {})
    size = path.stat().st_size
    first, last = 0, size - 1
    if wanted is not None and fault is not Fault.NO_RANGES:
        first, last = (int(word) for word in wanted.removeprefix("bytes=").split("-"))
    last = last - 1 if fault is Fault.OTHER_RANGE else last
    length = last + 1 - first
    status = "206 Partial Content" if wanted is not None and fault is not Fault.NO_RANGES else "200 OK"
    headers = {"Content-Range": f"bytes {first}-{last}/{size}"} if status.startswith("206") else {}
    if fault is not Fault.TOO_LONG:
        headers["Content-Length"] = str(length)
    _head(writer, status, headers)
    sent = await _send_bytes(hub, writer, path, first, _length_under(fault, length), fault is Fault.FLIPPED_BIT)
    if fault is Fault.TOO_LONG:
        writer.write(bytes(1000))
    if fault is Fault.STALL and sent < length:
        await writer.drain()
        await asyncio.Event().wait()  # until the hub is taken down, or the client goes
    return None


def _length_under(fault: Fault | None, length: int) -> int:
    return length // 2 if fault in (Fault.STALL, Fault.TRUNCATE) else length


async def _send_bytes(
    hub: LocalHub, writer: asyncio.StreamWriter, path: Path, first: int, length: int, is_flipped: bool
) -> int:
    descriptor, sent = os.open(path, os.O_RDONLY | os.O_CLOEXEC), 0
    try:
        while sent < length:
            part = bytearray(os.pread(descriptor, min(CHUNK_BYTES, length - sent), first + sent))
            if is_flipped and sent == 0:
                part[len(part) // 2] ^= 4
            writer.write(part)
            sent += len(part)
            hub.body_bytes += len(part)
            await writer.drain()
    finally:
        os.close(descriptor)
    return sent


def _answer(writer: asyncio.StreamWriter, status: str, headers: dict[str, str], body: bytes = b"") -> None:
    _head(writer, status, {**headers, "Content-Length": str(len(body))})
    writer.write(body)


def _head(writer: asyncio.StreamWriter, status: str, headers: dict[str, str]) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in {**headers, "Connection": "close"}.items())
    writer.write(f"HTTP/1.1 {status}\r\n{lines}\r\n".encode("latin-1"))
