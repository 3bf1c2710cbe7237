"""The control socket: who may speak, how much, and what happens when either side goes away."""

import asyncio
import os
import socket
import stat
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from shoal.protocol.control import ControlReply, ControlRequest, FollowLogs, GetStatus, LogLine, Pause, Peers
from shoal.protocol.errors import Busy, InvalidRequest, NodeAlreadyRunning, NodeNotRunning, ShoalError
from shoal.protocol.net.control_socket import (
    MAX_CONNECTIONS,
    ControlRefused,
    ask,
    control_server,
    follow,
    running_names,
    socket_path,
)

LINE = LogLine(1.0, "info", "ready", {})


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short, unlike pytest's own: a socket's path has 103 bytes."""
    with TemporaryDirectory(prefix="shoal") as name:
        yield Path(name) / "run"


async def answer(request: ControlRequest) -> AsyncGenerator[ControlReply, None]:
    match request:
        case GetStatus():
            yield Peers(())
        case Pause():
            raise Busy("not now", 1.0)
        case _:
            for _ in range(3):
                yield LINE


def test_a_request_is_answered(directory: Path) -> None:
    async def scene() -> ControlReply:
        async with control_server(directory, "node", answer):
            return await ask(directory, "node", GetStatus())

    assert asyncio.run(scene()) == Peers(())


def test_a_stream_of_replies_arrives_whole_and_ends(directory: Path) -> None:
    async def scene() -> list[ControlReply]:
        async with control_server(directory, "node", answer):
            return [reply async for reply in follow(directory, "node", FollowLogs())]

    assert asyncio.run(scene()) == [LINE] * 3


def test_a_refusal_is_raised_with_the_nodes_words_and_status(directory: Path) -> None:
    async def scene() -> None:
        async with control_server(directory, "node", answer):
            await ask(directory, "node", Pause(1.0))

    with pytest.raises(ControlRefused, match="not now") as caught:
        asyncio.run(scene())
    assert caught.value.exit_status == Busy.exit_status


def test_a_bug_in_an_answer_is_reported_and_the_next_request_is_served(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def buggy(request: ControlRequest) -> AsyncGenerator[ControlReply, None]:
        if request == GetStatus():
            raise ZeroDivisionError
        yield LINE

    async def scene() -> ControlReply:
        async with control_server(directory, "node", buggy):
            with pytest.raises(ControlRefused, match="ZeroDivisionError"):
                await ask(directory, "node", GetStatus())
            return await ask(directory, "node", FollowLogs())

    assert asyncio.run(scene()) == LINE
    assert "a control request failed" in caplog.text


def test_only_the_owner_can_reach_it(directory: Path) -> None:
    async def scene() -> None:
        async with control_server(directory, "node", answer) as path:
            modes.extend(stat.S_IMODE(os.stat(each).st_mode) for each in (directory, path))

    modes: list[int] = []
    asyncio.run(scene())
    assert modes == [0o700, 0o600]


def test_another_users_connection_is_cut(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with control_server(directory, "node", answer) as path:
            ours = os.getuid()
            monkeypatch.setattr("os.getuid", lambda: ours + 1)
            reader, writer = await asyncio.open_unix_connection(path)
            assert await reader.read() == b""
            writer.close()
            monkeypatch.undo()
            assert await ask(directory, "node", GetStatus()) == Peers(())

    asyncio.run(scene())


def test_a_directory_that_others_can_enter_is_refused_with_the_command(directory: Path) -> None:
    directory.mkdir(mode=0o755)

    async def scene() -> None:
        async with control_server(directory, "node", answer):
            pass

    with pytest.raises(InvalidRequest, match="chmod 700"):
        asyncio.run(scene())


def test_one_node_has_a_name_at_a_time(directory: Path) -> None:
    async def scene() -> None:
        async with control_server(directory, "node", answer):
            async with control_server(directory, "other", answer):
                assert running_names(directory) == ["node", "other"]
            with pytest.raises(NodeAlreadyRunning, match="--name"):
                async with control_server(directory, "node", answer):
                    pass
            assert await ask(directory, "node", GetStatus()) == Peers(())

    asyncio.run(scene())


def test_the_socket_of_a_killed_node_is_no_obstacle_and_nobody_answers_at_it(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(directory / "node.sock"))

    async def scene() -> ControlReply:
        with pytest.raises(NodeNotRunning) as caught:
            await ask(directory, "node", GetStatus())
        assert caught.value.exit_status == 3
        async with control_server(directory, "node", answer):
            return await ask(directory, "node", GetStatus())

    assert asyncio.run(scene()) == Peers(())
    assert running_names(directory) == []


@pytest.mark.parametrize("line", [b"nonsense\n", b'{"type": "x"}\n', b"x" * 5000 + b"\n"], ids=["text", "type", "long"])
def test_what_is_no_request_is_refused_and_the_connection_ends(directory: Path, line: bytes) -> None:
    async def scene() -> bytes:
        async with control_server(directory, "node", answer) as path:
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(line)
            said = await reader.read()
            writer.close()
            return said

    assert asyncio.run(scene()).startswith(b'{"type":"refused"')


def test_an_answer_stops_when_the_asker_hangs_up(directory: Path) -> None:
    ended = asyncio.Event()

    async def endless(request: ControlRequest) -> AsyncGenerator[ControlReply, None]:
        try:
            yield LINE
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def scene() -> None:
        async with control_server(directory, "node", endless):
            async with aclosing(follow(directory, "node", FollowLogs(is_following=True))) as replies:
                async for _ in replies:
                    break
            await ended.wait()

    asyncio.run(scene())


def test_connections_beyond_the_limit_are_cut(directory: Path) -> None:
    async def scene() -> None:
        async with control_server(directory, "node", answer) as path:
            held = [await asyncio.open_unix_connection(path) for _ in range(MAX_CONNECTIONS)]
            with pytest.raises(ShoalError):
                await ask(directory, "node", GetStatus())
            for _, writer in held:
                writer.close()

    asyncio.run(scene())


@pytest.mark.parametrize("name", ["", "../node", "a/b", ".hidden", "a" * 33, "ü"])
def test_a_name_is_no_path(directory: Path, name: str) -> None:
    with pytest.raises(InvalidRequest):
        socket_path(directory, name)


def test_a_path_too_long_for_a_socket_is_refused_with_the_variable(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="XDG_RUNTIME_DIR"):
        socket_path(tmp_path / ("x" * 100), "node")
