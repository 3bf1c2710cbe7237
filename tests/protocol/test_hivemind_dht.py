"""The DHT directory over real daemons: what is published is found, and lies about others are refused."""

import asyncio
import gc
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol import limits
from shoal.protocol.errors import ChannelClosed, ConnectFailed, InvalidRequest
from shoal.protocol.identity import Identity
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.net.hivemind_dht import HivemindDirectory, RecordChecker, _validator, join_dht
from shoal.protocol.net.hivemind_loader import load_hivemind
from shoal.protocol.net.p2pd import P2pd, start_p2pd
from shoal.protocol.record_seal import RecordSeal
from shoal.protocol.records import HolderRecord, directory_key, encode_record

load_hivemind()

from hivemind.dht.crypto import DHTRecord  # noqa: E402
from hivemind.dht.routing import DHTID  # noqa: E402
from hivemind.p2p import PeerID  # noqa: E402
from hivemind.proto import dht_pb2  # noqa: E402
from hivemind.utils.timed_storage import ValueWithExpiration  # noqa: E402

from shoal.protocol.net.hivemind_guard import (  # noqa: E402
    BoundedStorage,
    FlatSerializer,
    HolderDictionary,
    _check_result,
    node_id_of,
)

IDENTITIES = [Identity.from_seed(bytes(31) + bytes([number])) for number in range(6)]
ROOT = bytes(range(32))
LAYER = LayerId(7)
GOOD_PEER = PeerID.from_base58(IDENTITIES[0].peer).to_bytes()


@pytest.fixture(autouse=True)
def nothing_reaches_the_user(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """hivemind's forgotten tasks and tracebacks would end on the terminal through asyncio's logger."""
    yield
    gc.collect()
    assert [record.getMessage() for record in caplog.records if not record.name.startswith("hivemind")] == []


def record_of(identity: Identity, layer: LayerId = LAYER, seq: int = 1, ttl_s: float = 60.0) -> HolderRecord:
    return HolderRecord(
        peer=identity.peer,
        model_root=ROOT,
        layer=layer,
        experts=frozenset({ExpertId(3), ExpertId(200)}),
        weight_format=1,
        roundings=3,
        kernel_class=1,
        capacity_mmacs=5,
        queue_ms=2,
        addresses=("127.0.0.1:4567", f"/ip4/127.0.0.1/tcp/4568/p2p/{identity.peer}"),
        seq=seq,
        expires_at_s=round(time.time() + ttl_s, 3),
    )


@asynccontextmanager
async def swarm(num_nodes: int) -> AsyncIterator[tuple[list[P2pd], list[HivemindDirectory]]]:
    """Nodes that all bootstrap at the first."""
    daemons = list(await asyncio.gather(*(start_p2pd(identity) for identity in IDENTITIES[:num_nodes])))
    directories: list[HivemindDirectory] = []
    try:
        for daemon, identity in zip(daemons, IDENTITIES, strict=False):
            bootstrap = daemons[0].addresses if directories else ()
            directories.append(await join_dht(daemon, identity, bootstrap, time.time))
        yield daemons, directories
    finally:
        for directory in directories:
            await directory.aclose()
        for daemon in daemons:
            await daemon.aclose()


async def find(directory: HivemindDirectory) -> list[HolderRecord]:
    return (await directory.lookup(ROOT, [LAYER]))[LAYER]


async def end_of(daemon: P2pd) -> None:
    await daemon._process.wait()
    assert not daemon.is_alive


class Attacker:
    """The last node of a swarm, which sends the first one whatever it likes."""

    def __init__(self, directories: Sequence[HivemindDirectory], victim: P2pd) -> None:
        self.identity = IDENTITIES[len(directories) - 1]
        self.protocol = directories[-1]._node.protocol
        self._stub = self.protocol.get_stub(PeerID.from_base58(victim.peer))

    async def store(
        self,
        data: bytes,
        *,
        subkey: bytes | None = None,
        key: bytes = directory_key(ROOT, LAYER),
        expires_at_s: float = 0.0,
        in_cache: bool = False,
        node_id: bytes | None = None,
    ) -> bool | None:
        """True: stored. False: refused. None: the whole request was refused."""
        request = dht_pb2.StoreRequest(
            keys=[DHTID.generate(key).to_bytes()],
            subkeys=[FlatSerializer.dumps(str(self.identity.peer)) if subkey is None else subkey],
            values=[data],
            expiration_time=[expires_at_s],
            in_cache=[in_cache],
            peer=dht_pb2.NodeInfo(node_id=self.protocol.node_id.to_bytes() if node_id is None else node_id),
        )
        try:
            response = await self._stub.rpc_store(request, timeout=5)
        except Exception:  # whatever hivemind makes of it
            return None
        return bool(response.store_ok[0])


@pytest.mark.socket
def test_what_one_node_publishes_another_finds() -> None:
    async def run() -> None:
        async with swarm(3) as (_, directories):
            record = record_of(IDENTITIES[1])
            await directories[1].publish([record, record_of(IDENTITIES[1], LayerId(8))])
            found = await directories[2].lookup(ROOT, [LAYER, LayerId(8), LayerId(9)])
            assert found[LAYER] == [record]
            assert len(found[LayerId(8)]) == 1
            assert found[LayerId(9)] == []
            assert await directories[0].lookup(bytes(32), [LAYER]) == {LAYER: []}
            assert await directories[0].lookup(ROOT, []) == {}

    asyncio.run(run())


@pytest.mark.socket
def test_many_holders_stand_under_one_key_and_survive_a_node_that_is_killed() -> None:
    async def run() -> None:
        async with swarm(5) as (daemons, directories):
            for identity, directory in zip(IDENTITIES, directories, strict=False):
                await directory.publish([record_of(identity)])
            expected = sorted(daemon.peer for daemon in daemons)
            assert [record.peer for record in await find(directories[4])] == expected
            os.kill(daemons[0].pid, 9)
            assert [record.peer for record in await find(directories[4])] == expected
            await directories[3].publish([record_of(IDENTITIES[3], seq=2)])
            assert {record.peer: record.seq for record in await find(directories[4])}[daemons[3].peer] == 2
            await end_of(daemons[0])
            with pytest.raises(ChannelClosed):
                await find(directories[0])

    asyncio.run(run())


@pytest.mark.socket
def test_a_later_seq_replaces_an_earlier_one_even_if_it_lives_shorter() -> None:
    async def run() -> None:
        async with swarm(2) as (_, directories):
            await directories[1].publish([record_of(IDENTITIES[1], seq=1, ttl_s=90)])
            withdrawn = replace(record_of(IDENTITIES[1], seq=2, ttl_s=30), experts=frozenset())
            await directories[1].publish([withdrawn])
            (found,) = await find(directories[0])
            assert (found.seq, found.experts) == (2, frozenset())

    asyncio.run(run())


@pytest.mark.socket
def test_records_expire() -> None:
    async def run() -> None:
        async with swarm(2) as (_, directories):
            await directories[1].publish([record_of(IDENTITIES[1], ttl_s=0.7)])
            assert len(await find(directories[0])) == 1
            async with asyncio.timeout(5):
                while await find(directories[0]):
                    pass

    asyncio.run(run())


@pytest.mark.socket
def test_storing_nodes_refuse_what_is_no_record_of_the_sender() -> None:
    async def run() -> None:
        async with swarm(2) as (daemons, directories):
            attacker = Attacker(directories, daemons[0])
            victim, own = record_of(IDENTITIES[5]), record_of(attacker.identity)
            expires = own.expires_at_s
            good = FlatSerializer.dumps(encode_record(own, attacker.identity))
            signed = encode_record(replace(own, seq=9), attacker.identity)
            forged = FlatSerializer.dumps(signed[:-1] + bytes([signed[-1] ^ 1]))
            foreign = FlatSerializer.dumps(str(victim.peer))
            store = attacker.store
            assert await store(forged, expires_at_s=expires) is False, "a signature that does not fit"
            assert await store(good, expires_at_s=expires, subkey=foreign) is False, "in somebody else's name"
            assert await store(good, expires_at_s=expires, key=b"x" * 32) is False, "under another layer"
            assert await store(good, expires_at_s=expires + 60) is False, "for longer than signed"
            assert await store(good, expires_at_s=float("inf")) is False, "for ever"
            assert await store(good, expires_at_s=expires, subkey=b"\xc0") is False, "without an owner"
            assert await store(b"junk", expires_at_s=expires) is False
            assert await store(good, expires_at_s=expires, in_cache=True) is None, "where it would hide others"
            assert await store(good, expires_at_s=expires, node_id=node_id_of(b"x")) is None, "from another's place"
            assert await store(good, expires_at_s=expires, key=b"x" * 33) is False
            mixed = HolderDictionary()
            mixed.store(victim.peer, good, expires)
            mixed.store(attacker.identity.peer, good, expires)
            assert await store(FlatSerializer.dumps(mixed), subkey=b"", expires_at_s=expires) is True
            assert [record.peer for record in await find(directories[0])] == [attacker.identity.peer], "the true one"
            assert await store(good, expires_at_s=expires) is False, "a replay"

    asyncio.run(run())


def bomb() -> bytes:
    """The message that ends a process which gives it to hivemind's serializer: 200 tuples in each other."""
    import msgpack

    data: bytes = b"\x90"
    for _ in range(200):
        data = msgpack.packb([msgpack.ExtType(0x40, data)])
    return data


def test_the_bomb_is_real() -> None:
    script = "import sys, hivemind.utils; hivemind.utils.MSGPackSerializer.loads(sys.stdin.buffer.read())"
    done = subprocess.run([sys.executable, "-c", script], input=bomb(), capture_output=True, timeout=60)
    assert done.returncode == -11
    assert len(bomb()) < 2000


@pytest.mark.socket
def test_a_nested_message_does_not_end_a_node() -> None:
    class BombSerializer(FlatSerializer):
        @staticmethod
        def dumps(obj: object) -> bytes:
            return bomb() if isinstance(obj, HolderDictionary) else FlatSerializer.dumps(obj)

    async def run() -> None:
        async with swarm(3) as (daemons, directories):
            attacker = Attacker(directories, daemons[0])
            expires = time.time() + 60
            assert await attacker.store(bomb(), subkey=b"", expires_at_s=expires) is None
            assert await attacker.store(bomb(), subkey=bomb(), expires_at_s=expires) is False
            await directories[1].publish([record_of(IDENTITIES[1])])
            attacker.protocol.serializer = BombSerializer  # and in its replies
            assert len(await find(directories[0])) == 1
            assert len(await find(directories[1])) == 1

    asyncio.run(run())


@pytest.mark.socket
def test_a_peer_that_claims_the_last_word_does_not_hide_others() -> None:
    """hivemind would end a search at a reply that expires later than any other could."""

    class Liar(BoundedStorage):
        def get(self, key: DHTID) -> ValueWithExpiration:
            return ValueWithExpiration(HolderDictionary(), float("inf"))

    async def run() -> None:
        async with swarm(3) as (_, directories):
            await directories[1].publish([record_of(IDENTITIES[1])])
            directories[2]._node.protocol.storage = Liar()
            assert len(await find(directories[0])) == 1
            assert len(await find(directories[1])) == 1

    asyncio.run(run())


@pytest.mark.parametrize(
    "result",
    [
        {"expiration_time": float("inf")},
        {"expiration_time": float("nan")},
        {"nearest_peer_ids": [GOOD_PEER], "nearest_node_ids": [node_id_of(b"x")]},
        {"nearest_peer_ids": [GOOD_PEER], "nearest_node_ids": []},
        {"nearest_peer_ids": [b"x" * 100_000], "nearest_node_ids": [node_id_of(b"x" * 100_000)]},
        {"nearest_peer_ids": [GOOD_PEER] * 65, "nearest_node_ids": [node_id_of(GOOD_PEER)] * 65},
    ],
)
def test_a_find_reply_that_breaks_the_rules_is_refused(result: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="a find reply"):
        _check_result(dht_pb2.FindResult(**result))


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


@pytest.mark.socket
def test_who_has_lost_everybody_finds_the_swarm_again() -> None:
    async def run() -> None:
        async with swarm(2) as (_, directories):
            lost = directories[1]
            table = lost._node.protocol.routing_table
            for node_id in list(table.uid_to_peer_id):
                del table[node_id]
            assert lost.num_neighbours == 0
            await lost.publish([record_of(IDENTITIES[1])])
            assert lost.num_neighbours == 1
            assert len(await find(directories[0])) == 1

    asyncio.run(run())


@pytest.mark.socket
def test_the_first_peer_of_a_swarm_keeps_its_own_records() -> None:
    async def run() -> None:
        async with swarm(1) as (_, (directory,)):
            assert await find(directory) == []
            await directory.publish([record_of(IDENTITIES[0])])
            assert len(await find(directory)) == 1
            with pytest.raises(InvalidRequest):
                await directory.publish([record_of(IDENTITIES[1])])

    asyncio.run(run())


@pytest.mark.socket
def test_a_client_reads_and_publishes_but_keeps_nothing_for_others() -> None:
    async def run() -> None:
        async with swarm(2) as (daemons, directories):
            await directories[1].publish([record_of(IDENTITIES[1])])
            daemon = await start_p2pd(IDENTITIES[5])
            client = await join_dht(daemon, IDENTITIES[5], daemons[0].addresses, time.time, is_client=True)
            try:
                assert len(await find(client)) == 1
                assert IDENTITIES[5].peer not in {str(peer) for peer in _known_peers(directories[0])}
            finally:
                await client.aclose()
                await daemon.aclose()

    asyncio.run(run())


@pytest.mark.socket
def test_a_stranger_finds_no_directory_at_a_private_swarms_peer() -> None:
    async def run() -> None:
        seal, daemons = RecordSeal(b"d" * 32), list(await asyncio.gather(*map(start_p2pd, IDENTITIES[:3])))
        join = daemons[0].addresses
        directories = [await join_dht(daemons[0], IDENTITIES[0], (), time.time, seal=seal)]
        try:
            directories.append(await join_dht(daemons[1], IDENTITIES[1], join, time.time, seal=seal))
            await directories[0].publish([record_of(IDENTITIES[0])])
            assert len(await find(directories[1])) == 1
            for other in (None, RecordSeal(b"e" * 32)):
                with pytest.raises(ConnectFailed):
                    await join_dht(daemons[2], IDENTITIES[2], join, time.time, seal=other)
            assert [directory.num_neighbours for directory in directories] == [1, 1]
        finally:
            for directory in directories:
                await directory.aclose()
            for daemon in daemons:
                await daemon.aclose()

    asyncio.run(run())


def test_a_private_swarms_keeper_takes_what_a_member_has_sealed_and_nothing_else() -> None:
    ours, theirs, nobody = RecordSeal(b"d" * 32), RecordSeal(b"e" * 32), RecordSeal()
    identity, record = IDENTITIES[0], record_of(IDENTITIES[0])
    validator, encoded = _validator(RecordChecker(time.time, ours), ours), encode_record(record, identity)

    def is_taken(seal: RecordSeal, name: bytes) -> bool:
        value = FlatSerializer.dumps(seal.seal(encoded, identity.peer))
        key, subkey = DHTID.generate(name).to_bytes(), FlatSerializer.dumps(str(identity.peer))
        return bool(validator.validate(DHTRecord(key, subkey, value, record.expires_at_s)))  # type: ignore[attr-defined]

    assert is_taken(ours, ours.name(ROOT, LAYER))
    assert not any(is_taken(seal, ours.name(ROOT, LAYER)) for seal in (theirs, nobody))
    assert not any(is_taken(ours, seal.name(ROOT, LAYER)) for seal in (theirs, nobody))


def _known_peers(directory: HivemindDirectory) -> list[PeerID]:
    return list(directory._node.protocol.routing_table.peer_id_to_uid)


@given(st.binary(max_size=200))
def test_the_codec_refuses_noise_with_a_value_error(data: bytes) -> None:
    try:
        value = FlatSerializer.loads(data)
    except ValueError:
        return
    assert value is None or isinstance(value, str | bytes | HolderDictionary)


@pytest.mark.parametrize("depth", [2, 100, 5_000])
def test_the_codec_refuses_lists_in_lists(depth: int) -> None:
    with pytest.raises(ValueError, match=r"list of records|^$"):
        FlatSerializer.loads(b"\x91" * depth + b"\xc0")


def test_the_codec_reads_what_it_writes() -> None:
    dictionary = HolderDictionary()
    dictionary.store("12D3", b"record", time.time() + 9.5)
    again = FlatSerializer.loads(FlatSerializer.dumps(dictionary))
    assert isinstance(again, HolderDictionary)
    assert dict(again.items()) == dict(dictionary.items())
    for value in (None, "12D3", b"record"):
        assert FlatSerializer.loads(FlatSerializer.dumps(value)) == value


def test_storage_that_is_full_keeps_what_it_has() -> None:
    storage, expires = BoundedStorage(), time.time() + 60
    key = DHTID.generate(b"layer")
    for number in range(limits.MAX_HOLDERS_PER_LAYER):
        assert storage.store(key, b"", expires, subkey=f"{number}")
    assert not storage.store(key, b"", expires + 9, subkey="newcomer")
    assert storage.store(key, b"renewed", expires + 1, subkey="0")
    assert not storage.store(key, b"replayed", expires, subkey="0")
    assert storage.get(key).value.get("0").value == b"renewed"
    assert not storage.store(key, b"for everybody", expires + 99)


def test_a_peer_id_is_its_place() -> None:
    assert node_id_of(b"a") != node_id_of(b"b")
    assert PeerId(str(PeerID.from_base58(IDENTITIES[0].peer))) == IDENTITIES[0].peer
