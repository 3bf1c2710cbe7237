"""How far a peer is, by TCP's handshake: sockets on loopback."""

import asyncio
import socket
from collections.abc import Iterator

import pytest

from shoal.protocol.net.round_trip import round_trip_s


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def ticks() -> Iterator[float]:
    moment = 0.0
    while True:
        moment += 1.0
        yield moment


def measured(addresses: list[str], excluded: tuple[str, ...] = ()) -> float | None:
    clock = ticks()
    return asyncio.run(round_trip_s(addresses, lambda: next(clock), excluded))


def address_of(server: socket.socket) -> str:
    return f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}"


def test_who_listens_is_measured_whatever_his_other_addresses(listener: socket.socket) -> None:
    words = ["/dns4/example.org/tcp/1/p2p/x", f"{address_of(listener)}/p2p/x", "127.0.0.1:1", "/ip4/300.0.0.1/tcp/5"]
    assert measured(words) is not None


def test_a_closed_port_an_address_behind_a_relay_and_none_at_all_tell_nothing(listener: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        closed = address_of(gone)
    assert measured([closed]) is None
    assert measured([f"{address_of(listener)}/p2p/x/p2p-circuit/p2p/y"]) is None
    assert measured([]) is None


def test_an_address_that_is_our_own_too_is_not_asked(listener: socket.socket) -> None:
    address = address_of(listener)
    assert measured([f"{address}/p2p/other"], excluded=(f"{address}/p2p/me",)) is None
