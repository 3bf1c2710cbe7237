"""hivemind's DHT, made safe to listen to strangers: what stands between a peer's bytes and `DHTNode`.

We use it to find the peers that are nearest to a name, and for nothing else: it keeps no values here (`record_book.py`
does), so its serializer, in which 1.4 kB of nested messages end the process, never sees a peer's bytes. The rules, all
checked before anything is used:

- a node's place in the DHT is the hash of its peer id, so nobody chooses to sit next to a key;
- nothing is stored and nothing is found but neighbours; every list of a request or reply has a cap;
- in a private swarm both sides of a call show a member's word (`record_seal.py`) in the field that hivemind has for
  signatures; who has none is told nothing and becomes nobody's neighbour.

Imports hivemind: import this module inside functions only, after `load_hivemind`. Knows no identities and no records.
"""

from collections.abc import Iterable

import hivemind.dht.node
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage
from hivemind.p2p import P2P, P2PContext, PeerID
from hivemind.proto import dht_pb2
from hivemind.utils import SerializerBase

from shoal.protocol.ids import PeerId
from shoal.protocol.record_seal import RecordSeal
from shoal.protocol.version import DIRECTORY_RPC

NODE_ID_CONTEXT = b"shoal directory node v1\x00"
"""Domain separation of the hash that places a peer in the DHT."""

NODE_ID_BYTES = DHTID.HASH_NBYTES
PEER_ID_BYTES = 38
"""An Ed25519 peer id: 6 bytes of multihash and protobuf, 32 of key. hivemind encodes peer ids in base58, which takes
time quadratic in their length."""

MAX_NEIGHBOURS = 64
"""Nodes that a reply names per key; hivemind names 20."""

MAX_KEYS_PER_FIND = 4
"""Keys of one find request; we ask for one."""


def node_id_of(peer: bytes) -> bytes:
    """The place of a peer (binary peer id) in the DHT."""
    return bytes(DHTID.generate(source=NODE_ID_CONTEXT + peer).to_bytes())


class NoSerializer(SerializerBase):  # type: ignore[misc]
    """There are no values to read or write."""

    @staticmethod
    def dumps(obj: object) -> bytes:
        raise ValueError("the DHT keeps no values")

    @staticmethod
    def loads(buf: bytes) -> object:
        raise ValueError("the DHT keeps no values")


class NoStorage(DHTLocalStorage):  # type: ignore[misc]
    """Keeps nothing."""

    def store(self, key: DHTID, value: bytes, expiration_time: float, subkey: str | None = None) -> bool:
        return False

    def store_subkey(self, key: DHTID, subkey: str, value: bytes, expiration_time: float) -> bool:
        return False


class ShoalDirectory(DHTProtocol):  # type: ignore[misc]
    """hivemind's DHT protocol, of which only ping and find are left, with every request and reply checked first."""

    serializer = NoSerializer
    _rpc_handlers = None  # hivemind caches both on the class that asks first
    _stub_type = None
    seal = RecordSeal()

    @classmethod
    async def create(cls, *args: object, **kwargs: object) -> "ShoalDirectory":
        protocol: ShoalDirectory = await super().create(*args, **kwargs)
        protocol.storage = NoStorage()
        return protocol

    async def add_p2p_handlers(
        self, p2p: P2P, wrapper: object = None, *, namespace: str | None = None, balanced: bool = False
    ) -> None:
        """Open to others: what they call is checked at the door; hivemind calls its own methods past it."""
        await super().add_p2p_handlers(p2p, _Door(self), namespace=namespace, balanced=balanced)

    def get_stub(self, peer: PeerID) -> "_CheckedStub":
        return _CheckedStub(super().get_stub(peer), peer, Words(self.seal, self.p2p.peer_id, peer))

    async def rpc_ping(self, request: dht_pb2.PingRequest, context: P2PContext) -> dht_pb2.PingResponse:
        _check_node(request.peer, context.remote_id)
        return await super().rpc_ping(request, context)

    async def rpc_store(self, request: dht_pb2.StoreRequest, context: P2PContext) -> dht_pb2.StoreResponse:
        raise ValueError("the DHT keeps no values")

    async def rpc_find(self, request: dht_pb2.FindRequest, context: P2PContext) -> dht_pb2.FindResponse:
        _check_node(request.peer, context.remote_id)
        _check_keys(request.keys)
        return await super().rpc_find(request, context)


class _Door:
    """What other peers call: a member's word first, and ours with the answer."""

    def __init__(self, protocol: ShoalDirectory) -> None:
        self._protocol = protocol

    async def rpc_ping(self, request: dht_pb2.PingRequest, context: P2PContext) -> dht_pb2.PingResponse:
        words = self._checked(request, context)
        response = await self._protocol.rpc_ping(request, context)
        response.auth.signature = words.ours
        return response

    async def rpc_find(self, request: dht_pb2.FindRequest, context: P2PContext) -> dht_pb2.FindResponse:
        words = self._checked(request, context)
        response = await self._protocol.rpc_find(request, context)
        response.auth.signature = words.ours
        return response

    async def rpc_store(self, request: dht_pb2.StoreRequest, context: P2PContext) -> dht_pb2.StoreResponse:
        return await self._protocol.rpc_store(request, context)

    def _checked(self, request: dht_pb2.PingRequest | dht_pb2.FindRequest, context: P2PContext) -> "Words":
        words = Words(self._protocol.seal, context.local_id, context.remote_id)
        words.check(request.auth.signature)
        return words


class Words:
    """What `us` and `them` show each other; nothing at all in an open swarm."""

    def __init__(self, seal: RecordSeal, us: PeerID, them: PeerID) -> None:
        self._seal = seal
        self._us, self._them = PeerId(us.to_base58()), PeerId(them.to_base58())

    @property
    def ours(self) -> bytes:
        return self._seal.word(self._us, self._them)

    def check(self, word: bytes) -> None:
        """
        Raises:
            ValueError: it is not theirs.
        """
        if not self._seal.is_word(word, self._them, self._us):
            raise ValueError("no member of this swarm")


class _CheckedStub:
    """Calls to one peer; a reply that breaks the rules is an error, which hivemind treats as no reply."""

    def __init__(self, stub: DHTProtocol, peer: PeerID, words: Words) -> None:
        self._stub = stub
        self._peer = peer
        self._words = words

    async def rpc_ping(self, request: dht_pb2.PingRequest, timeout: float) -> dht_pb2.PingResponse:
        request.auth.signature = self._words.ours
        response = await self._stub.rpc_ping(request, timeout=timeout)
        self._words.check(response.auth.signature)
        _check_node(response.peer, self._peer)
        return response

    async def rpc_find(self, request: dht_pb2.FindRequest, timeout: float) -> dht_pb2.FindResponse:
        request.auth.signature = self._words.ours
        response = await self._stub.rpc_find(request, timeout=timeout)
        self._words.check(response.auth.signature)
        _check_node(response.peer, self._peer)
        if len(response.results) != len(request.keys):
            raise ValueError("a find reply for other keys")
        for result in response.results:
            check_result(result)
        return response


def _check_node(node: dht_pb2.NodeInfo, peer: PeerID) -> None:
    """A node gives no id (a client) or the one that is its own."""
    if node.node_id and node.node_id != node_id_of(peer.to_bytes()):
        raise ValueError(f"{peer} in the place of another node")


def _check_keys(keys: Iterable[bytes]) -> None:
    sizes = [len(key) for key in keys]
    if len(sizes) > MAX_KEYS_PER_FIND or any(size != NODE_ID_BYTES for size in sizes):
        raise ValueError("keys that are too many or of the wrong size")


def check_result(result: dht_pb2.FindResult) -> None:
    """
    Raises:
        ValueError: it brings more than neighbours, or neighbours in places that are not theirs.
    """
    if result.type != dht_pb2.NOT_FOUND or result.value:
        raise ValueError("a find reply with a value")
    peers = result.nearest_peer_ids
    if len(peers) > MAX_NEIGHBOURS or any(len(peer) != PEER_ID_BYTES for peer in peers):
        raise ValueError("a find reply with too many neighbours, or with ids that are none of ours")
    if list(result.nearest_node_ids) != [node_id_of(peer) for peer in peers]:
        raise ValueError("a find reply with nodes in the place of others")


def install_guard(seal: RecordSeal) -> None:
    """Make every `DHTNode` that is created from now on in this process speak the guarded protocol, under the names of
    this swarm (`RecordSeal.swarm_tag`) and with its words. Idempotent."""
    names = {"_rpc_handlers": None, "_stub_type": None, "seal": seal}  # as above: one cache per class
    hivemind.dht.node.DHTProtocol = type(f"{DIRECTORY_RPC}{seal.swarm_tag}", (ShoalDirectory,), names)
