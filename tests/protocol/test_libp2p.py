"""Channels over raw p2pd streams: the peers are who they are, and an end is noticed at once."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from shoal.protocol.errors import AuthenticationFailed, ChannelClosed, ConnectFailed, Malformed, NotHeld, ShoalError
from shoal.protocol.identity import Identity
from shoal.protocol.ids import PeerId
from shoal.protocol.messages import Dispatch, DType, Partial, WeightFormat
from shoal.protocol.net import p2pd, p2pd_control
from shoal.protocol.net.channel import Channel, Handler, Reply, Request
from shoal.protocol.net.libp2p import Libp2pConnector, Libp2pListener, listen_libp2p
from shoal.protocol.net.p2pd import P2pd, P2pdSettings, start_p2pd
from shoal.protocol.version import LIBP2P_PROTOCOL_ID

pytestmark = pytest.mark.socket

CLIENT, SERVER, OTHER = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2, 3))
TIMEOUT_S = 5.0
BUSY_S = 60.0
PATIENT = P2pdSettings(start_timeout_s=BUSY_S)
"""The first one imports hivemind meanwhile, which takes a loaded machine long."""

HIDDEN = 1024
MESSAGE = Dispatch(
    model_root=bytes(32),
    layer=3,
    rounding=0,
    weight_format=WeightFormat.F32,
    dtype=DType.F32,
    num_tokens=2,
    hidden=HIDDEN,
    experts=(5,),
    num_rows=(2,),
    deadline_ms=5_000,
)
HIDDEN_STATES = bytes(range(256)) * (2 * HIDDEN * 4 // 256)
BODY = (HIDDEN_STATES, bytes(MESSAGE.body_size() - len(HIDDEN_STATES)))


def echo(request: Request) -> Reply:
    message = request.message
    partial = Partial(request.request_hash, message.num_tokens, message.hidden, 0, 0)
    return Reply(partial, bytes(request.body)[: partial.body_size()])


@dataclass
class Pair:
    """A server and a client, each with its p2pd."""

    listener: Libp2pListener
    connector: Libp2pConnector
    server_p2pd: P2pd
    client_p2pd: P2pd
    seen: list[PeerId]


@asynccontextmanager
async def pair(handle: Callable[[Request], Reply] | None = None, handler: Handler | None = None) -> AsyncIterator[Pair]:
    seen: list[PeerId] = []

    async def serve(request: Request) -> Reply:
        seen.append(request.peer)
        return (handle or echo)(request)

    server, client = await asyncio.gather(start_p2pd(SERVER, PATIENT), start_p2pd(CLIENT, PATIENT))
    try:
        listener = await listen_libp2p(SERVER, server, handler or serve, os.urandom)
        connector = Libp2pConnector(CLIENT, client, os.urandom)
        yield Pair(listener, connector, server, client, seen)
        await connector.aclose()
        await listener.aclose()
    finally:
        await client.aclose()
        await server.aclose()


@pytest.mark.parametrize("before", [SERVER, CLIENT])
def test_a_daemon_from_before_that_offers_noise_too_is_understood(
    before: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = p2pd._flags

    def with_noise(settings: P2pdSettings, directory: Path, key_file: Path) -> list[str]:
        now = flags(settings, directory, key_file)
        assert now.count("-noise=0") == 1
        is_before = key_file.read_bytes() == before.libp2p_private_key()
        return ["-noise=1" if is_before and flag == "-noise=0" else flag for flag in now]

    async def run() -> None:
        async with pair() as it:
            channel = await it.connector.connect(SERVER.peer, it.listener.addresses, BUSY_S)
            assert bytes((await channel.request(replace(MESSAGE, deadline_ms=60_000), BODY)).body) == HIDDEN_STATES
            assert it.seen == [CLIENT.peer]

    monkeypatch.setattr(p2pd, "_flags", with_noise)
    asyncio.run(run())


def test_requests_are_answered_and_both_sides_know_each_other() -> None:
    async def run() -> None:
        async with pair() as it:
            assert it.listener.addresses == it.server_p2pd.addresses
            channel = await it.connector.connect(SERVER.peer, ("1.2.3.4:5", *it.listener.addresses), TIMEOUT_S)
            assert channel.peer == SERVER.peer
            replies = await asyncio.gather(*(channel.request(MESSAGE, BODY) for _ in range(20)))
            assert all(bytes(reply.body) == HIDDEN_STATES for reply in replies)
            assert set(it.seen) == {CLIENT.peer}
            assert 0 < await channel.ping(TIMEOUT_S) < TIMEOUT_S
            big = replace(MESSAGE, num_tokens=512, hidden=4096, num_rows=(1,))
            body = bytes(512 * 4096 * 4)
            reply = await channel.request(big, (body, bytes(big.body_size() - len(body))))
            assert bytes(reply.body) == body
            await channel.aclose()
            with pytest.raises(ChannelClosed):
                await channel.request(MESSAGE, BODY)
            again = await it.connector.connect(SERVER.peer, it.listener.addresses, TIMEOUT_S)
            await again.request(MESSAGE, BODY)

    asyncio.run(run())


def test_a_refusal_arrives_as_an_error() -> None:
    def refuse(request: Request) -> Reply:
        raise NotHeld("expert 5")

    async def run() -> None:
        async with pair(refuse) as it:
            channel = await it.connector.connect(SERVER.peer, it.listener.addresses, TIMEOUT_S)
            with pytest.raises(NotHeld):
                await channel.request(MESSAGE, BODY)

    asyncio.run(run())


def test_another_peer_at_the_address_is_refused() -> None:
    async def run() -> None:
        async with pair() as it:
            lie = it.listener.addresses[0].replace(SERVER.peer, OTHER.peer)
            with pytest.raises(AuthenticationFailed):
                await it.connector.connect(OTHER.peer, [lie], TIMEOUT_S)
            with pytest.raises(ConnectFailed, match="no libp2p address"):
                await it.connector.connect(OTHER.peer, it.listener.addresses, TIMEOUT_S)

    asyncio.run(run())


def test_a_client_that_says_it_is_somebody_else_gets_nothing() -> None:
    """Its p2pd has proved one key, its HELLO another."""

    async def run() -> None:
        async with pair() as it:
            impostor = Libp2pConnector(OTHER, it.client_p2pd, os.urandom)
            with pytest.raises(ShoalError):
                await impostor.connect(SERVER.peer, it.listener.addresses, TIMEOUT_S)
            assert it.seen == []

    asyncio.run(run())


def test_a_connect_without_hope_ends_in_time() -> None:
    async def run() -> None:
        async with pair() as it:
            for addresses in ([], ["127.0.0.1:1"], ["/ip4/127.0.0.1/tcp/9"], ["/nonsense/1"]):
                with pytest.raises(ConnectFailed):
                    await it.connector.connect(OTHER.peer, addresses, TIMEOUT_S)
            started = time.monotonic()
            with pytest.raises(ConnectFailed):
                await it.connector.connect(OTHER.peer, [f"/ip4/127.0.0.1/tcp/{mute.getsockname()[1]}"], 0.3)
            assert time.monotonic() - started < 2
            with pytest.raises(Malformed):
                await it.connector.connect(PeerId("nobody"), it.listener.addresses, TIMEOUT_S)

    with socket.create_server(("127.0.0.1", 0)) as mute:  # accepts, in the kernel, and never says a word
        asyncio.run(run())


def test_a_server_without_our_protocol_is_no_server() -> None:
    async def run() -> None:
        async with pair() as it:
            await it.listener.aclose()
            lonely = await start_p2pd(OTHER)
            try:
                with pytest.raises(ConnectFailed):
                    await it.connector.connect(OTHER.peer, lonely.addresses, TIMEOUT_S)
            finally:
                await lonely.aclose()

    asyncio.run(run())


@pytest.mark.parametrize("who", ["server's p2pd", "client's p2pd", "listener"])
def test_an_end_is_noticed_at_once_by_requests_in_flight(who: str) -> None:
    async def run() -> None:
        working = asyncio.Event()
        stopped = asyncio.Event()

        async def work(request: Request) -> Reply:
            working.set()
            try:
                await asyncio.sleep(60)
            finally:
                stopped.set()
            raise AssertionError

        async with pair(handler=work) as it:
            channel = await it.connector.connect(SERVER.peer, it.listener.addresses, TIMEOUT_S)
            request = asyncio.create_task(channel.request(replace(MESSAGE, deadline_ms=60_000), BODY))
            await working.wait()
            started = time.monotonic()
            if who == "listener":
                await it.listener.aclose()
            else:
                os.kill(it.server_p2pd.pid if who == "server's p2pd" else it.client_p2pd.pid, 9)
            with pytest.raises(ChannelClosed):
                await request
            await stopped.wait()
            assert time.monotonic() - started < 2
            assert channel.is_closed

    asyncio.run(run())


async def ping_for_ever(channel: Channel) -> None:
    while True:
        await channel.ping(TIMEOUT_S)


def test_a_drain_sends_clients_elsewhere() -> None:
    async def run() -> None:
        async with pair() as it:
            channel = await it.connector.connect(SERVER.peer, it.listener.addresses, TIMEOUT_S)
            draining = asyncio.create_task(it.listener.drain(0.5))
            with pytest.raises(ChannelClosed):  # it has nothing in flight and leaves
                await ping_for_ever(channel)
            assert channel.is_draining
            await draining
            with pytest.raises(ShoalError):
                await it.connector.connect(SERVER.peer, it.listener.addresses, 1.0)

    asyncio.run(run())


def test_what_is_sent_arrives_if_the_opener_closes_first() -> None:
    """The trap of p2pd: the other order loses what was not read yet."""

    async def run() -> None:
        data = os.urandom(200_000)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: PeerId) -> None:
            assert peer == CLIENT.peer
            writer.write(data)
            await writer.drain()
            await reader.read()
            writer.close()

        async with pair() as it:
            await it.listener.aclose()
            control = it.client_p2pd.control_path
            streams = p2pd_control.StreamServer(it.server_p2pd.control_path, LIBP2P_PROTOCOL_ID)
            await streams.start(serve)
            await p2pd_control.dial(control, SERVER.peer, it.server_p2pd.addresses)
            reader, writer = await p2pd_control.open_stream(control, SERVER.peer, LIBP2P_PROTOCOL_ID)
            assert await reader.readexactly(len(data)) == data
            writer.close()
            await writer.wait_closed()
            await streams.stop()

    asyncio.run(run())
