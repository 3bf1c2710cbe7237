"""TLS: who may connect to whom, and that strangers cost nothing and see nothing."""

import asyncio
import logging
import os
import ssl
import stat
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from shoal.protocol import limits
from shoal.protocol.errors import AddressInUse, AuthenticationFailed, ConnectFailed, InvalidRequest
from shoal.protocol.net import certificate
from shoal.protocol.net.certificate import ALPN, check_server_key, client_context, make_certificate, server_context
from shoal.protocol.net.direct import DirectConnector, format_address, listen_direct, parse_address
from tests.protocol.networks import CLIENT, OTHER, PAIRS, SERVER, SOON_S, Kind, Pair, body_of, dispatch, echo


@pytest.fixture(params=["direct", "direct-uvloop"])
def direct(request: pytest.FixtureRequest) -> Kind:
    return PAIRS[request.param]


def port_of(swarm: Pair) -> int:
    endpoint = parse_address(swarm.listener.addresses[0])
    assert endpoint is not None
    return endpoint[1]


async def still_serves(swarm: Pair) -> None:
    channel = await swarm.connect()
    await channel.request(dispatch(), body_of(dispatch()))


def test_another_peer_at_the_address_is_noticed_before_a_byte_is_sent(direct):
    async def test():
        async with direct(echo) as swarm:
            with pytest.raises(AuthenticationFailed):
                await swarm.connector.connect(OTHER.peer, swarm.listener.addresses, SOON_S)
            await still_serves(swarm)

    direct.run(test())


def test_tls_1_2_is_refused(direct):
    async def test():
        async with direct(echo) as swarm:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises(OSError):  # noqa: PT011  ssl.SSLError or a reset, by loop
                await asyncio.open_connection("127.0.0.1", port_of(swarm), ssl=context, server_hostname="")
            await still_serves(swarm)

    direct.run(test())


def test_plaintext_is_dropped_silently(direct, caplog):
    async def test():
        async with direct(echo) as swarm:
            reader, writer = await asyncio.open_connection("127.0.0.1", port_of(swarm))
            writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            answer = b""
            with suppress(ConnectionError):
                answer = await reader.read(1000)
            assert len(answer) <= 7  # at most a TLS alert
            writer.close()
            await still_serves(swarm)

    with caplog.at_level(logging.WARNING):
        direct.run(test())
    assert not caplog.records


def test_a_client_that_hangs_up_in_the_tls_handshake_leaves_no_line_in_the_log(direct, caplog):
    async def test():
        async with direct(echo) as swarm:
            for first_bytes in (b"", b"\x16\x03\x01"):
                _, writer = await asyncio.open_connection("127.0.0.1", port_of(swarm))
                writer.write(first_bytes)
                writer.transport.abort()
            await still_serves(swarm)

    with caplog.at_level(logging.WARNING):
        direct.run(test())
    assert not caplog.records


def test_a_client_that_never_starts_tls_is_cut(direct, monkeypatch):
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_S", 0.2)

    async def test():
        async with direct(echo) as swarm:
            reader, writer = await asyncio.open_connection("127.0.0.1", port_of(swarm))
            with suppress(ConnectionError):
                assert await reader.read(10) == b""
            writer.close()

    direct.run(test())


def test_silent_tcp_connections_count_as_half_open(direct, monkeypatch):
    monkeypatch.setattr(limits, "MAX_HALF_OPEN_PER_ORIGIN", 2)

    async def test():
        async with direct(echo) as swarm:
            silent = [await asyncio.open_connection("127.0.0.1", port_of(swarm)) for _ in range(2)]
            with pytest.raises(ConnectFailed):
                await swarm.connect()
            for _, writer in silent:
                writer.close()
                await writer.wait_closed()

    direct.run(test())


def test_a_tls_client_of_another_protocol_is_dropped(direct):
    async def test():
        async with direct(echo) as swarm:
            context = client_context()
            context.set_alpn_protocols(["h2"])
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", port_of(swarm), ssl=context, server_hostname=""
                )
                assert await reader.read(10) == b""
                writer.close()
            await still_serves(swarm)

    direct.run(test())


def test_a_tls_server_of_another_protocol_is_no_peer(direct, tmp_path):
    pem = tmp_path / "server.pem"
    key = SERVER.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pem.write_bytes(key + make_certificate(SERVER))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)

    async def test():
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0, ssl=context)
        address = format_address("127.0.0.1", server.sockets[0].getsockname()[1])
        connector = DirectConnector(CLIENT, os.urandom)
        with pytest.raises(ConnectFailed, match=ALPN):
            await connector.connect(SERVER.peer, [address], SOON_S)
        server.close()
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)  # asyncio's own, which shake hands with lanes that were given up

    direct.run(test())


def test_a_port_in_use_is_named(direct):
    async def test():
        async with direct(echo) as swarm:
            with pytest.raises(AddressInUse, match=str(port_of(swarm))):
                await listen_direct(SERVER, "127.0.0.1", port_of(swarm), echo, os.urandom)

    direct.run(test())


def test_an_address_that_is_not_ours_is_invalid(direct):
    async def test():
        with pytest.raises(InvalidRequest, match=r"192\.0\.2\.1"):
            await listen_direct(SERVER, "192.0.2.1", 0, echo, os.urandom)

    direct.run(test())


def test_the_next_address_is_tried_when_one_is_dead_or_of_another_kind(direct):
    async def test():
        async with direct(echo) as swarm:
            addresses = ["/ip4/127.0.0.1/tcp/1", "127.0.0.1:1", *swarm.listener.addresses]
            channel = await swarm.connector.connect(SERVER.peer, addresses, SOON_S)
            await channel.request(dispatch(), body_of(dispatch()))
            with pytest.raises(ConnectFailed, match="no address"):
                await swarm.connector.connect(SERVER.peer, addresses[:1], SOON_S)
            with pytest.raises(ConnectFailed, match=r"127\.0\.0\.1:1"):
                await swarm.connector.connect(SERVER.peer, addresses[:2], SOON_S)

    direct.run(test())


def test_the_announced_host_is_what_records_carry(direct):
    async def test():
        listener = await listen_direct(SERVER, "127.0.0.1", 0, echo, os.urandom, announce_host="2001:db8::1")
        host, port = parse_address(listener.addresses[0]) or ("", 0)
        assert host == "2001:db8::1"
        assert port > 0
        await listener.aclose()

    direct.run(test())


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [
        ("example.org:4001", ("example.org", 4001)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("::1:80", None),
        ("host", None),
        ("host:0", None),
        ("host:65536", None),
        ("host:-1", None),
        ("host:x", None),
        (":80", None),
        ("/ip4/1.2.3.4/tcp/80", None),
        ("/dns/a:80", None),
        ("host:８０", None),
    ],
)
def test_addresses_are_host_and_port(address, endpoint):
    assert parse_address(address) == endpoint
    if endpoint is not None:
        assert format_address(*endpoint) == address


def test_a_certificate_is_the_key_and_nothing_else():
    der = ssl.PEM_cert_to_DER_cert(make_certificate(SERVER).decode("ascii"))
    check_server_key(der, SERVER.peer)
    assert make_certificate(SERVER) == make_certificate(SERVER)
    for wrong in (None, b"", b"\x30\x03\x02\x01\x01"):
        with pytest.raises(AuthenticationFailed):
            check_server_key(wrong, SERVER.peer)
    with pytest.raises(AuthenticationFailed):
        check_server_key(der, OTHER.peer)


def test_the_key_is_in_a_private_folder_and_only_for_a_moment(monkeypatch, tmp_path):
    seen: list[tuple[int, int]] = []

    class Watching(TemporaryDirectory[str]):
        def cleanup(self):
            folder = Path(self.name)
            seen.append((stat.S_IMODE(folder.stat().st_mode), stat.S_IMODE((folder / "key.pem").stat().st_mode)))
            super().cleanup()

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(certificate, "TemporaryDirectory", Watching)
    context = server_context(SERVER)
    assert seen == [(0o700, 0o600)]
    assert list(tmp_path.iterdir()) == []
    assert (context.minimum_version, context.num_tickets) == (ssl.TLSVersion.TLSv1_3, 0)
