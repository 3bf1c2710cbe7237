"""The DHT directory over real daemons: what is published is found, renewed cheaply, and gone when its node is."""

import asyncio
import gc
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from shoal.protocol import limits
from shoal.protocol.errors import ChannelClosed, ConnectFailed, InvalidRequest
from shoal.protocol.ids import LayerId
from shoal.protocol.membership import Founder
from shoal.protocol.net.dht_keepers import NUM_KEEPERS
from shoal.protocol.net.hivemind_dht import HivemindDirectory, join_dht
from shoal.protocol.net.hivemind_loader import load_hivemind
from shoal.protocol.net.p2pd import P2pd, start_p2pd
from shoal.protocol.sync_messages import SyncReply, SyncRequest
from tests.protocol.dht_swarm import IDENTITIES, LAYER, ROOT, LeapClock, find, patience, record_of, swarm  # noqa: F401  (one is a fixture)

load_hivemind()

from hivemind.p2p import PeerID  # noqa: E402

pytestmark = [pytest.mark.socket, pytest.mark.usefixtures("patience")]


@pytest.fixture(autouse=True)
def nothing_reaches_the_user(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """hivemind's forgotten tasks and tracebacks would end on the terminal through asyncio's logger."""
    yield
    gc.collect()
    assert [record.getMessage() for record in caplog.records if not record.name.startswith("hivemind")] == []


async def end_of(daemon: P2pd) -> None:
    await daemon._process.wait()
    assert not daemon.is_alive


def listen(directory: HivemindDirectory) -> list[SyncRequest]:
    """The requests that it sends from now on."""
    port, sent = directory._port, list[SyncRequest]()
    call = port.call

    async def noted(peer: PeerID, request: SyncRequest) -> SyncReply | None:
        sent.append(request)
        return await call(peer, request)

    port.call = noted  # type: ignore[method-assign]
    return sent


def test_what_one_node_publishes_another_finds() -> None:
    async def run() -> None:
        async with swarm(3) as (_, directories):
            await directories[1].publish(record_of(IDENTITIES[1]))
            found = await directories[2].lookup(ROOT, [LAYER, LayerId(8), LayerId(9)])
            assert [[set(record.experts) for record in found[layer]] for layer in found] == [[{3, 200}], [{1}], [set()]]
            assert {record.addresses for record in found[LAYER]} == {record_of(IDENTITIES[1]).addresses}
            assert await directories[0].lookup(bytes(32), [LAYER]) == {LAYER: []}
            assert await directories[0].lookup(ROOT, []) == {}

    asyncio.run(run())


def test_many_holders_stand_in_one_roster_and_survive_a_node_that_is_killed() -> None:
    async def run() -> None:
        async with swarm(NUM_KEEPERS + 2) as (daemons, directories):
            for identity, directory in zip(IDENTITIES, directories, strict=False):
                await directory.publish(record_of(identity))
            expected = sorted(daemon.peer for daemon in daemons)
            assert [record.peer for record in await find(directories[-1])] == expected
            os.kill(daemons[0].pid, 9)
            assert [record.peer for record in await find(directories[-1])] == expected
            await directories[3].publish(record_of(IDENTITIES[3], expert=4))
            found = {record.peer: record.experts for record in await find(directories[3])}
            assert found[daemons[3].peer] == {4, 200}
            await end_of(daemons[0])
            with pytest.raises(ChannelClosed):
                await find(directories[0])

    asyncio.run(run())


def test_a_newcomer_finds_all_though_a_keeper_is_gone() -> None:
    async def run() -> None:
        clock = LeapClock()
        async with swarm(NUM_KEEPERS + 1, clock) as (daemons, directories):
            for identity, directory in zip(IDENTITIES, directories, strict=False):
                await directory.publish(record_of(identity))
            os.kill(daemons[2].pid, 9)
            await end_of(daemons[2])
            daemon = await start_p2pd(IDENTITIES[6])
            try:
                newcomer = await join_dht(daemon, IDENTITIES[6], daemons[0].addresses, clock)
                assert [record.peer for record in await find(newcomer)] == sorted(each.peer for each in daemons)
                await newcomer.aclose()
            finally:
                await daemon.aclose()

    asyncio.run(run())


def test_to_say_the_same_again_takes_a_pulse_and_no_record() -> None:
    async def run() -> None:
        clock = LeapClock()
        async with swarm(3, clock) as (_, directories):
            await directories[1].publish(record_of(IDENTITIES[1]))
            (before,) = await find(directories[0])
            sent = listen(directories[1])
            clock.now_s += limits.PULSE_PERIOD_S
            await directories[1].publish(record_of(IDENTITIES[1]))
            assert [(request.record, len(request.pulse)) for request in sent] == [(b"", 16)] * 2
            (after,) = await find(directories[0])
            assert (after.experts, after.seq) == (before.experts, before.seq)
            assert after.expires_at_s > before.expires_at_s

    asyncio.run(run())


def test_a_keeper_that_has_forgotten_a_record_is_given_it_again() -> None:
    async def run() -> None:
        clock = LeapClock()
        async with swarm(2, clock) as (_, directories):
            await directories[1].publish(record_of(IDENTITIES[1]))
            clock.now_s += limits.RECORD_TTL_S
            assert await find(directories[0]) == []
            await directories[1].publish(record_of(IDENTITIES[1]))
            assert len(await find(directories[0])) == 1

    asyncio.run(run())


def test_a_withdrawal_counts_at_once() -> None:
    async def run() -> None:
        async with swarm(2) as (_, directories):
            await directories[1].publish(record_of(IDENTITIES[1]))
            await directories[1].publish(replace(record_of(IDENTITIES[1]), experts={}))
            (found,) = await find(directories[0])
            assert found.experts == frozenset()

    asyncio.run(run())


def test_a_node_that_says_nothing_more_is_gone_after_ninety_seconds() -> None:
    async def run() -> None:
        clock = LeapClock()
        async with swarm(3, clock) as (_, directories):
            await directories[1].publish(record_of(IDENTITIES[1]))
            assert len(await find(directories[0])) == 1
            clock.now_s += limits.RECORD_TTL_S
            assert await find(directories[0]) == await find(directories[2]) == []
            assert (await directories[0].lookup(ROOT, [LAYER], max_age_s=1e9))[LAYER] == [], "nor is it remembered"

    asyncio.run(run())


def test_who_has_just_published_need_not_ask_who_is_there() -> None:
    async def run() -> None:
        async with swarm(3) as (_, directories):
            for identity, directory in zip(IDENTITIES, directories, strict=False):
                await directory.publish(record_of(identity))
            sent = listen(directories[2])
            found = await directories[2].lookup(ROOT, [LAYER], max_age_s=1e9)
            assert (len(found[LAYER]), sent) == (3, [])
            assert len(await find(directories[2])) == 3
            assert len(sent) == 1, "one keeper is enough where nobody is missing"

    asyncio.run(run())


def test_one_keeper_that_hides_a_node_hides_it_from_nobody() -> None:
    """It says that it kept the record, and does not tell of it."""

    async def run() -> None:
        clock = LeapClock()
        async with swarm(4, clock) as (daemons, directories):
            book = directories[3]._keeper.book
            book.live = lambda *_: []  # type: ignore[method-assign]
            await directories[1].publish(record_of(IDENTITIES[1]))
            for _ in range(NUM_KEEPERS):
                assert [record.peer for record in await find(directories[0])] == [daemons[1].peer]
            clock.now_s += limits.PULSE_PERIOD_S
            await directories[1].publish(record_of(IDENTITIES[1]))
            clock.now_s += limits.PULSE_PERIOD_S
            for _ in range(NUM_KEEPERS):
                assert [record.peer for record in await find(directories[0])] == [daemons[1].peer]

    asyncio.run(run())


def test_who_has_lost_everybody_finds_the_swarm_again() -> None:
    async def run() -> None:
        async with swarm(2) as (_, directories):
            lost = directories[1]
            table = lost._node.protocol.routing_table
            for node_id in list(table.uid_to_peer_id):
                del table[node_id]
            assert lost.num_neighbours == 0
            await lost.publish(record_of(IDENTITIES[1]))
            assert lost.num_neighbours == 1
            assert len(await find(directories[0])) == 1

    asyncio.run(run())


def test_the_first_peer_of_a_swarm_keeps_its_own_record() -> None:
    async def run() -> None:
        async with swarm(1) as (_, (directory,)):
            assert await find(directory) == []
            await directory.publish(record_of(IDENTITIES[0]))
            assert len(await find(directory)) == 1
            with pytest.raises(InvalidRequest):
                await directory.publish(record_of(IDENTITIES[1]))

    asyncio.run(run())


def test_a_client_reads_and_keeps_nothing_for_others() -> None:
    async def run() -> None:
        clock = LeapClock()
        async with swarm(2, clock) as (daemons, directories):
            await directories[1].publish(record_of(IDENTITIES[1]))
            daemon = await start_p2pd(IDENTITIES[5])
            client = await join_dht(daemon, IDENTITIES[5], daemons[0].addresses, clock, is_client=True)
            try:
                assert len(await find(client)) == 1
                known = directories[0]._node.protocol.routing_table.peer_id_to_uid
                assert IDENTITIES[5].peer not in {str(peer) for peer in known}
            finally:
                await client.aclose()
                await daemon.aclose()

    asyncio.run(run())


def test_a_stranger_finds_no_directory_at_a_private_swarms_peer() -> None:
    async def run() -> None:
        ours, theirs = (Founder(secret * 32).member(b"1" * 16) for secret in (b"F", b"G"))
        clock, daemons = LeapClock(), list(await asyncio.gather(*map(start_p2pd, IDENTITIES[:3])))
        join = daemons[0].addresses
        directories = [await join_dht(daemons[0], IDENTITIES[0], (), clock, membership=ours)]
        try:
            directories.append(await join_dht(daemons[1], IDENTITIES[1], join, clock, membership=ours))
            await directories[0].publish(record_of(IDENTITIES[0]))
            assert len(await find(directories[1])) == 1
            for other in (None, theirs):
                with pytest.raises(ConnectFailed):
                    await join_dht(daemons[2], IDENTITIES[2], join, clock, membership=other)
            assert [directory.num_neighbours for directory in directories] == [1, 1]
        finally:
            for directory in directories:
                await directory.aclose()
            for daemon in daemons:
                await daemon.aclose()

    asyncio.run(run())
