"""Peers that nobody named: whoever is discovered is joined through, and swarms that began apart become one."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from shoal.protocol.errors import ConnectFailed, NetworkError
from shoal.protocol.identity import Identity
from shoal.protocol.lan import LanSwarm
from shoal.protocol.limits import MAX_ADDRESSES
from shoal.protocol.membership import Founder, Membership
from shoal.protocol.net.discovery import Discovery, first_addresses
from shoal.protocol.net.entry import Entry, enter_swarm
from shoal.protocol.net.hivemind_dht import HivemindDirectory

ROOT = b"r" * 32
MEMBER = Founder(b"F" * 32).member(b"1" * 16)
ALICE, BOB, CAROL = (Identity.from_seed(bytes([number]) * 32) for number in (41, 42, 43))
FOREVER_S = 60.0
"""No test waits so long unless it has failed."""


class Air:
    """A LAN inside the test: what is announced is heard by everybody, swarm by swarm."""

    def __init__(self) -> None:
        self.said: list[tuple[LanSwarm, str]] = []
        self.changed = asyncio.Event()

    def say(self, swarm: LanSwarm, address: str) -> None:
        self.said.append((swarm, address))
        self.changed.set()
        self.changed = asyncio.Event()

    @asynccontextmanager
    async def listen(self, swarm: LanSwarm) -> AsyncIterator[Discovery]:
        yield Ear(self, swarm)


class Ear:
    def __init__(self, air: Air, swarm: LanSwarm) -> None:
        self.air, self.swarm = air, swarm

    async def addresses(self) -> AsyncGenerator[str, None]:
        position = 0
        while True:
            changed = self.air.changed
            while position < len(self.air.said):
                swarm, address = self.air.said[position]
                position += 1
                if swarm == self.swarm:
                    yield address
            await changed.wait()

    async def announce(self, public_key: bytes, port: int) -> None:
        from shoal.protocol.identity import peer_id_of

        self.air.say(self.swarm, f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer_id_of(public_key)}")


def directory_of(entry: Entry) -> HivemindDirectory:
    assert isinstance(entry.directory, HivemindDirectory)
    return entry.directory


async def until_met(*entries: Entry) -> None:
    async with asyncio.timeout(FOREVER_S):
        while not all(directory_of(entry).num_neighbours for entry in entries):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_the_first_that_are_found_are_enough() -> None:
    async def test() -> None:
        air = Air()
        async with air.listen(LanSwarm(ROOT)) as ear:
            assert await first_addresses(ear, wait_s=0.0) == []
            for number in range(20):
                air.say(LanSwarm(ROOT), f"/ip4/10.0.0.{number}")
            found = await first_addresses(ear, wait_s=FOREVER_S, grace_s=FOREVER_S)
            assert found == [f"/ip4/10.0.0.{number}" for number in range(MAX_ADDRESSES)]
            air.say(LanSwarm(b"x" * 32), "/ip4/10.0.0.99")
            assert len(await first_addresses(ear, wait_s=FOREVER_S, grace_s=0.0)) <= MAX_ADDRESSES

    asyncio.run(test())


@pytest.mark.socket
@pytest.mark.parametrize("member", [None, MEMBER], ids=["open", "private"])
def test_peers_without_an_address_to_join_by_find_each_other(member: Membership | None) -> None:
    async def test() -> None:
        air = Air()
        async with AsyncExitStack() as stack:

            async def enter(identity: Identity, is_client: bool = False) -> Entry:
                entering = enter_swarm(
                    identity, (), ROOT, time.time, is_client=is_client, membership=member, discover=air.listen
                )  # fmt: skip
                return await stack.enter_async_context(entering)

            # begun at the same time, neither finds the other and each begins a swarm of its own
            alice, bob = await asyncio.gather(enter(ALICE), enter(BOB))
            await until_met(alice, bob)
            carol = await enter(CAROL, is_client=True)
            assert directory_of(carol).num_neighbours > 0

    asyncio.run(test())


@pytest.mark.socket
def test_an_address_that_nobody_answers_at_is_made_up_for_by_discovery() -> None:
    async def test() -> None:
        air, dead = Air(), f"/ip4/127.0.0.1/tcp/9/p2p/{CAROL.peer}"
        entering = enter_swarm(ALICE, (), ROOT, time.time, discover=air.listen)
        async with entering as alice:
            async with asyncio.timeout(FOREVER_S):
                while not air.said:
                    await air.changed.wait()
            joining = enter_swarm(BOB, (dead,), ROOT, time.time, is_client=True, discover=air.listen)
            async with joining as bob:
                assert directory_of(bob).num_neighbours == 1
        assert directory_of(alice) is not directory_of(bob)

    asyncio.run(test())


@pytest.mark.socket
def test_a_client_that_finds_nobody_is_told_so() -> None:
    async def enter(join: tuple[str, ...], discover: object) -> None:
        async with enter_swarm(BOB, join, ROOT, time.time, is_client=True, discover=discover):  # type: ignore[arg-type]
            pass

    async def test() -> None:
        dead = f"/ip4/127.0.0.1/tcp/9/p2p/{CAROL.peer}"
        with pytest.raises(ConnectFailed, match="nobody of this swarm answers on this LAN"):
            await enter((), Air().listen)
        with pytest.raises(ConnectFailed, match=f"(?s){dead}.*nobody of this swarm answers on this LAN"):
            await enter((dead,), Air().listen)
        with pytest.raises(ConnectFailed, match="no multicast"):
            await enter((), no_lan)

    asyncio.run(test())


@pytest.mark.socket
def test_a_node_on_a_machine_without_multicast_begins_its_swarm_all_the_same() -> None:
    async def test() -> None:
        async with enter_swarm(ALICE, (), ROOT, time.time, discover=no_lan) as alice:
            assert directory_of(alice).num_neighbours == 0

    asyncio.run(test())


@asynccontextmanager
async def no_lan(_: LanSwarm) -> AsyncIterator[Discovery]:
    raise NetworkError("no multicast DNS on this machine")
    yield  # for the type: a generator


def test_a_machine_that_listens_on_loopback_alone_has_no_lan() -> None:
    from shoal.protocol.net.mdns import lan_discovery

    for host in ("127.0.0.1", "::1"):
        assert lan_discovery(host, os.urandom) is None
