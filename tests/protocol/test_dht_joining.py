"""Joining the directory: through whoever answers, and with a word on who does not."""

import asyncio
import gc
import socket
import time
from collections.abc import Iterator

import pytest

from shoal.protocol.errors import ConnectFailed
from shoal.protocol.net.hivemind_dht import join_dht
from shoal.protocol.net.p2pd import start_p2pd
from tests.protocol.dht_swarm import IDENTITIES, swarm


@pytest.fixture(autouse=True)
def nothing_reaches_the_user(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """hivemind's forgotten tasks and tracebacks would end on the terminal through asyncio's logger."""
    yield
    gc.collect()
    assert [record.getMessage() for record in caplog.records if not record.name.startswith("hivemind")] == []


@pytest.mark.socket
def test_a_bootstrap_peer_that_does_not_answer_is_named() -> None:
    async def run() -> None:
        daemon = await start_p2pd(IDENTITIES[0])
        try:
            dead = f"/ip4/127.0.0.1/tcp/9/p2p/{IDENTITIES[1].peer}"
            with pytest.raises(ConnectFailed, match=dead):
                await join_dht(daemon, IDENTITIES[0], [dead], time.time)
            with pytest.raises(ConnectFailed, match="no bootstrap peer"):
                await join_dht(daemon, IDENTITIES[0], ["nonsense"], time.time)
        finally:
            await daemon.aclose()

    asyncio.run(run())


@pytest.mark.socket
def test_a_dead_bootstrap_peer_does_not_hold_up_a_join_through_another() -> None:
    async def run() -> None:
        async with swarm(1) as (daemons, _):
            silent = f"/ip4/127.0.0.1/tcp/{mute.getsockname()[1]}/p2p/{IDENTITIES[4].peer}"
            daemon = await start_p2pd(IDENTITIES[5])
            started = time.monotonic()
            directory = await join_dht(daemon, IDENTITIES[5], [silent, *daemons[0].addresses], time.time)
            assert time.monotonic() - started < 3
            assert directory.num_neighbours == 1
            await directory.aclose()
            await daemon.aclose()

    with socket.create_server(("127.0.0.1", 0)) as mute:  # accepts, in the kernel, and never says a word
        asyncio.run(run())


@pytest.mark.socket
def test_a_bootstrap_peer_without_a_directory_is_named() -> None:
    async def run() -> None:
        ours, other = await asyncio.gather(start_p2pd(IDENTITIES[0]), start_p2pd(IDENTITIES[1]))
        try:
            with pytest.raises(ConnectFailed, match="no directory of ours at"):
                await join_dht(ours, IDENTITIES[0], other.addresses, time.time)
        finally:
            await ours.aclose()
            await other.aclose()

    asyncio.run(run())
