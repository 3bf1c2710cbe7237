"""hivemind's DHT behind its guard: it finds neighbours, keeps nothing, and no message of a peer ends a node."""

import asyncio
import gc
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest

from shoal.protocol.ids import PeerId
from shoal.protocol.net.hivemind_dht import HivemindDirectory
from shoal.protocol.net.hivemind_loader import load_hivemind
from tests.protocol.dht_swarm import IDENTITIES, find, patience, record_of, swarm  # noqa: F401  (one is a fixture)

load_hivemind()

from hivemind.dht.routing import DHTID  # noqa: E402
from hivemind.p2p import P2PHandlerError, PeerID  # noqa: E402
from hivemind.proto import dht_pb2  # noqa: E402

from shoal.protocol.net.hivemind_guard import NoSerializer, NoStorage, check_result, node_id_of  # noqa: E402

GOOD_PEER = PeerID.from_base58(IDENTITIES[0].peer).to_bytes()


@pytest.fixture(autouse=True)
def nothing_reaches_the_user(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """hivemind's forgotten tasks and tracebacks would end on the terminal through asyncio's logger."""
    yield
    gc.collect()
    assert [record.getMessage() for record in caplog.records if not record.name.startswith("hivemind")] == []


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


class Attacker:
    """The last node of a swarm, which sends the first one whatever it likes."""

    def __init__(self, directories: Sequence[HivemindDirectory], victim: PeerId) -> None:
        self.protocol = directories[-1]._node.protocol
        self._name = type(self.protocol).__name__
        self._victim = PeerID.from_base58(victim)

    async def call(self, rpc: str, request: object) -> object:
        """The reply. Raises P2PHandlerError: it was refused."""
        reply = getattr(dht_pb2, type(request).__name__.replace("Request", "Response"))
        return await self.protocol.p2p.call_protobuf_handler(self._victim, f"{self._name}.rpc_{rpc}", request, reply)


@pytest.mark.socket
@pytest.mark.usefixtures("patience")
def test_nothing_is_stored_and_nobody_stands_in_anothers_place() -> None:
    async def run() -> None:
        async with swarm(2) as (daemons, directories):
            attacker = Attacker(directories, daemons[0].peer)
            place, key = attacker.protocol.node_id.to_bytes(), DHTID.generate(b"x").to_bytes()
            other = dht_pb2.NodeInfo(node_id=node_id_of(b"x"))
            ours = dht_pb2.NodeInfo(node_id=place)
            store = {"keys": [key], "subkeys": [b""], "expiration_time": [2e9], "in_cache": [False]}
            for rpc, request in (
                ("store", dht_pb2.StoreRequest(**store, values=[bomb()], peer=ours)),
                ("store", dht_pb2.StoreRequest(**{**store, "subkeys": [bomb()]}, values=[b"x"], peer=ours)),
                ("find", dht_pb2.FindRequest(keys=[key], peer=other)),
                ("find", dht_pb2.FindRequest(keys=[b"x" * 33], peer=ours)),
                ("find", dht_pb2.FindRequest(keys=[key] * 5, peer=ours)),
                ("ping", dht_pb2.PingRequest(peer=other)),
            ):
                with pytest.raises(P2PHandlerError):
                    await attacker.call(rpc, request)
            reply = await attacker.call("find", dht_pb2.FindRequest(keys=[key], peer=ours))
            assert isinstance(reply, dht_pb2.FindResponse)
            check_result(reply.results[0])
            await directories[1].publish(record_of(IDENTITIES[1]))
            assert len(await find(directories[0])) == 1

    asyncio.run(run())


@pytest.mark.parametrize(
    "result",
    [
        {"type": dht_pb2.FOUND_REGULAR, "value": b"x"},
        {"type": dht_pb2.FOUND_DICTIONARY, "value": bomb()},
        {"type": dht_pb2.NOT_FOUND, "value": b"x"},
        {"nearest_peer_ids": [GOOD_PEER], "nearest_node_ids": [node_id_of(b"x")]},
        {"nearest_peer_ids": [GOOD_PEER], "nearest_node_ids": []},
        {"nearest_peer_ids": [b"x" * 100_000], "nearest_node_ids": [node_id_of(b"x" * 100_000)]},
        {"nearest_peer_ids": [GOOD_PEER] * 65, "nearest_node_ids": [node_id_of(GOOD_PEER)] * 65},
    ],
)
def test_a_find_reply_that_breaks_the_rules_is_refused(result: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="a find reply"):
        check_result(dht_pb2.FindResult(**result))


def test_there_is_nothing_to_store_in_and_nothing_to_read_with() -> None:
    storage = NoStorage()
    assert not storage.store(DHTID.generate(b"x"), b"x", 2e9)
    assert not storage.store_subkey(DHTID.generate(b"x"), "x", b"x", 2e9)
    assert len(storage) == 0
    for act in (NoSerializer.dumps, NoSerializer.loads):
        with pytest.raises(ValueError, match="no values"):
            act(b"x")


def test_a_peer_id_is_its_place() -> None:
    assert node_id_of(b"a") != node_id_of(b"b")
    assert PeerId(str(PeerID.from_base58(IDENTITIES[0].peer))) == IDENTITIES[0].peer
