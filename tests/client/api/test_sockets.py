"""The gateway on a real port, against clients that misbehave on the wire.

Run: pytest tests/client/api/test_sockets.py
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shoal.client.api import body, connection, serve
from shoal.client.api.serve import listening
from shoal.client.api.settings import ApiSettings
from shoal.protocol.errors import AddressInUse, InvalidRequest
from tests.client.api.fake_model import ASK, FakeModel, Gateway, gateway, until

pytestmark = pytest.mark.socket


@asynccontextmanager
async def on_a_port(model: FakeModel) -> AsyncIterator[tuple[Gateway, int]]:
    settings = ApiSettings(port=0)
    door = gateway(model, settings)
    async with listening(door.app, settings, door.services.shutdown) as url:
        yield door, int(url.rpartition(":")[2])


def request(payload: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: localhost", *headers]
    lines.append(f"Content-Length: {len(payload) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + payload


def asked(**fields: object) -> bytes:
    return request(json.dumps(ASK | fields).encode())


@pytest.mark.parametrize("stream", [True, False])
def test_a_dropped_connection_ends_the_work(stream: bool) -> None:
    async def drop() -> None:
        model = FakeModel("word " * 100, gate=asyncio.Semaphore(3))
        async with on_a_port(model) as (_, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(asked(stream=stream))
            await until(lambda: model.num_tokens == 3)
            writer.transport.abort()
            await until(lambda: model.num_streams == 0)
        assert model.num_tokens == 3

    asyncio.run(drop())


def test_a_reader_that_stops_reading_is_dropped_and_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SLOW_READER_TIMEOUT_S", 0.2)

    async def stall() -> None:
        model = FakeModel("word " * 50_000)
        async with on_a_port(model) as (_, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(asked(stream=True))
            await until(lambda: model.num_streams == 1)
            await until(lambda: model.num_streams == 0)
            writer.transport.abort()
        assert model.num_tokens < 100_000, "what the kernel's buffers take and 64 KiB of ours; the answer has more"

    asyncio.run(stall())


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat", request(b"{", length=100)])
def test_half_a_request_is_not_waited_for_for_ever(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "REQUEST_TIMEOUT_S", 0.1)

    async def wait() -> bytes:
        async with on_a_port(FakeModel()) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            try:
                return await reader.read()
            except ConnectionResetError:
                return b""
            finally:
                writer.transport.abort()

    assert asyncio.run(wait()) == b""


def test_a_body_that_does_not_come_gets_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_TIMEOUT_S", 0.1)
    assert b" 408 " in asyncio.run(_first_line(request(b"{", length=100)))


def test_ten_megabytes_get_413_whether_declared_or_not() -> None:
    too_much = body.MAX_BODY_BYTES + 1
    assert b" 413 " in asyncio.run(_first_line(request(b"{", length=too_much)))
    chunk = b"%x\r\n%s\r\n" % (2**20, b" " * 2**20)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert b" 413 " in asyncio.run(_first_line(head + chunk * 10))


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET /v1/models HTTP/1.1\r\n\r\n"])
def test_what_is_no_request_is_refused(sent: bytes) -> None:
    assert b" 4" in asyncio.run(_first_line(sent))


async def _first_line(sent: bytes) -> bytes:
    async with on_a_port(FakeModel()) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        line = await reader.readline()
        writer.transport.abort()
        return line


def test_a_connection_is_used_again() -> None:
    async def twice() -> list[bytes]:
        async with on_a_port(FakeModel()) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            lines = []
            for _ in range(2):
                writer.write(asked())
                head = await reader.readuntil(b"\r\n\r\n")
                lines.append(head.splitlines()[0])
                length = next(line for line in head.lower().splitlines() if line.startswith(b"content-length"))
                await reader.readexactly(int(length.split(b":")[1]))
            writer.close()
            return lines

    assert asyncio.run(twice()) == [b"HTTP/1.1 200 OK"] * 2


def test_a_gateway_that_ends_lets_answers_finish_and_tells_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "DRAIN_TIMEOUT_S", 0.2)

    async def end() -> bytes:
        model = FakeModel("word " * 100, gate=asyncio.Semaphore(3))
        async with on_a_port(model) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(asked(stream=True))
            await until(lambda: model.num_tokens == 3)
        told = await reader.read()
        writer.close()
        return told

    told = asyncio.run(end())
    assert b"shutting_down" in told
    assert b"[DONE]" not in told


def test_a_port_that_is_taken_and_an_address_that_is_not_ours_are_named() -> None:
    async def listen() -> None:
        async with on_a_port(FakeModel()) as (door, port):
            with pytest.raises(AddressInUse, match=str(port)):
                async with listening(door.app, ApiSettings(port=port), door.services.shutdown):
                    pass
            far = ApiSettings(host="203.0.113.7", api_key="k", port=0)
            with pytest.raises(InvalidRequest, match="can not listen"):
                async with listening(door.app, far, door.services.shutdown):
                    pass

    asyncio.run(listen())
