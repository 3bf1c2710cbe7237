"""hivemind's DHT, made safe to listen to strangers: what stands between a peer's bytes and `DHTNode`.

hivemind decodes first and validates later, and its serializer follows nested messages by C recursion: 1.4 kB of them
end the process. So its serializer never sees a peer's bytes here. The rules, all checked before anything is used:

- a value is None, a peer id, a record or a flat list of [peer id, record, expiry]: no ext types, no deeper (R1, R4);
- a node's place in the DHT is the hash of its peer id, so nobody chooses to sit next to a key;
- every list of a request or reply has a cap, every expiry is finite; nothing is stored "in cache", which hivemind would
  prefer to what it holds itself and with which one peer could hide the records of all others;
- a reply with one record that has just expired loses that record, not all of them;
- storage is bounded, and a newcomer that finds it full is refused: what is there stays.

Imports hivemind: import this module inside functions only, after `load_hivemind`. Knows no identities and no
signatures; the record validator of `hivemind_dht.py` does.
"""

import math
from collections.abc import Iterable

import hivemind.dht.node
import msgpack
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.p2p import P2PContext, PeerID
from hivemind.proto import dht_pb2
from hivemind.utils import SerializerBase
from hivemind.utils.timed_storage import TimedStorage

from shoal.protocol import limits
from shoal.protocol.identity import MAX_PEER_ID_CHARACTERS
from shoal.protocol.record_seal import SEAL_BYTES

NODE_ID_CONTEXT = b"shoal directory node v1\x00"
"""Domain separation of the hash that places a peer in the DHT."""

NODE_ID_BYTES = DHTID.HASH_NBYTES
PEER_ID_BYTES = 38
"""An Ed25519 peer id: 6 bytes of multihash and protobuf, 32 of key. hivemind encodes peer ids in base58, which takes
time quadratic in their length."""

MAX_VALUE_BYTES = limits.MAX_RECORD_BYTES + SEAL_BYTES + 3
"""A sealed record as a msgpack byte string."""

MAX_DICTIONARY_BYTES = limits.MAX_HOLDERS_PER_LAYER * (MAX_VALUE_BYTES + MAX_PEER_ID_CHARACTERS + 16) + 8
"""All holders of a layer."""

MAX_NEIGHBOURS = 64
"""Nodes that a reply names per key; hivemind names 20."""

MAX_KEYS_PER_FIND = 32
"""Keys of one find request: the square root of `limits.MAX_LAYER + 1`, which is how hivemind splits a long list."""

MAX_KEYS_PER_STORE = limits.MAX_LAYER + 1
"""Keys of one store request; a node that joins is sent what it is to keep in one."""

MAX_STORED_KEYS = 4096
"""Layers that one node keeps holders of: 67 models of DeepSeek-V3's depth."""

MAX_STORED_RECORDS = 16_384
"""Records that one node keeps for others, 32 MiB at most."""


def node_id_of(peer: bytes) -> bytes:
    """The place of a peer (binary peer id) in the DHT."""
    return bytes(DHTID.generate(source=NODE_ID_CONTEXT + peer).to_bytes())


class HolderDictionary(DictionaryDHTValue):  # type: ignore[misc]
    """The records of one layer, by peer id; at most `limits.MAX_HOLDERS_PER_LAYER`."""

    def store(self, key: str, value: bytes, expiration_time: float) -> bool:
        known = self.data.get(key)
        if known is not None and known.expiration_time >= expiration_time:
            return False  # hivemind would keep the value but forget it at the time of the older one
        if known is None and len(self) >= limits.MAX_HOLDERS_PER_LAYER:
            return False
        return bool(super().store(key, value, expiration_time))


class FlatSerializer(SerializerBase):  # type: ignore[misc]
    """The directory's codec on the wire, instead of hivemind's."""

    @staticmethod
    def dumps(obj: object) -> bytes:
        """Encode None, a peer id, a record or a `HolderDictionary`."""
        if isinstance(obj, DictionaryDHTValue):
            obj = [[peer, value, expires_at_s] for peer, (value, expires_at_s) in obj.items()]
        encoded: bytes = msgpack.packb(obj)
        return encoded

    @staticmethod
    def loads(buf: bytes) -> object:
        """Decode what `dumps` makes.

        Raises:
            ValueError: anything else; hivemind turns it into a refused call.
        """
        if len(buf) > MAX_DICTIONARY_BYTES:
            raise ValueError(f"a value of {len(buf)} bytes")
        value = msgpack.unpackb(
            buf, max_array_len=limits.MAX_HOLDERS_PER_LAYER, max_bin_len=MAX_VALUE_BYTES, max_ext_len=0,
            max_map_len=0, max_str_len=MAX_PEER_ID_CHARACTERS,
        )  # fmt: skip
        if isinstance(value, list):
            return _dictionary(value)
        if value is None or type(value) in (str, bytes):
            return value
        raise ValueError(f"a value of type {type(value).__name__}")


def _dictionary(items: Iterable[object]) -> HolderDictionary:
    dictionary = HolderDictionary()
    with dictionary.freeze():
        for item in items:
            match item:
                case [str(peer), bytes(value), float(expires_at_s)] if math.isfinite(expires_at_s):
                    dictionary.store(peer, value, expires_at_s)
                case _:
                    raise ValueError("a list that is no list of records")
    return dictionary


class BoundedStorage(DHTLocalStorage):  # type: ignore[misc]
    """What a node keeps for others: holder records by layer, nothing else."""

    def store(self, key: DHTID, value: bytes, expiration_time: float, subkey: str | None = None) -> bool:
        return subkey is not None and self.store_subkey(key, subkey, value, expiration_time)

    def store_subkey(self, key: DHTID, subkey: str, value: bytes, expiration_time: float) -> bool:
        entry = self.get(key)
        dictionary = HolderDictionary() if entry is None else entry.value
        if subkey not in dictionary and self._is_full(is_new_key=entry is None):
            return False
        is_stored = dictionary.store(subkey, value, expiration_time)
        if is_stored and (entry is None or entry.expiration_time < expiration_time):
            TimedStorage.store(self, key, dictionary, expiration_time)
        return bool(is_stored)

    def _is_full(self, *, is_new_key: bool) -> bool:
        if is_new_key and len(self) >= MAX_STORED_KEYS:
            return True
        if len(self) * limits.MAX_HOLDERS_PER_LAYER < MAX_STORED_RECORDS:
            return False  # the usual case, without counting
        return sum(len(dictionary) for _, (dictionary, _) in self.items()) >= MAX_STORED_RECORDS


class ShoalDirectoryV1(DHTProtocol):  # type: ignore[misc]
    """hivemind's DHT protocol with every request and reply checked first.

    The class's name is part of the libp2p protocol ids (`ShoalDirectoryV1.rpc_find`), so that we meet no other DHT.
    """

    serializer = FlatSerializer
    _rpc_handlers = None  # hivemind caches both on the class that asks first
    _stub_type = None

    @classmethod
    async def create(cls, *args: object, **kwargs: object) -> "ShoalDirectoryV1":
        protocol: ShoalDirectoryV1 = await super().create(*args, **kwargs)
        protocol.storage = BoundedStorage()
        return protocol

    def get_stub(self, peer: PeerID) -> "_CheckedStub":
        return _CheckedStub(super().get_stub(peer), peer)

    async def rpc_ping(self, request: dht_pb2.PingRequest, context: P2PContext) -> dht_pb2.PingResponse:
        _check_node(request.peer, context.remote_id)
        return await super().rpc_ping(request, context)

    async def rpc_store(self, request: dht_pb2.StoreRequest, context: P2PContext) -> dht_pb2.StoreResponse:
        _check_node(request.peer, context.remote_id)
        _check_keys(request.keys, MAX_KEYS_PER_STORE)
        if not len(request.keys) == len(request.subkeys) == len(request.values) == len(request.expiration_time):
            raise ValueError("a store request whose lists differ in length")
        if any(request.in_cache):
            raise ValueError("a store request for the cache")
        return await super().rpc_store(request, context)

    async def rpc_find(self, request: dht_pb2.FindRequest, context: P2PContext) -> dht_pb2.FindResponse:
        _check_node(request.peer, context.remote_id)
        _check_keys(request.keys, MAX_KEYS_PER_FIND)
        return await super().rpc_find(request, context)

    def _validate_dictionary(self, key_bytes: bytes, dictionary: HolderDictionary) -> bool:
        for subkey, (value, expires_at_s) in list(dictionary.data.items()):
            if not self._validate_record(key_bytes, self.serializer.dumps(subkey), value, expires_at_s):
                del dictionary[subkey]
        return True


class _CheckedStub:
    """Calls to one peer; a reply that breaks the rules is an error, which hivemind treats as no reply."""

    def __init__(self, stub: DHTProtocol, peer: PeerID) -> None:
        self._stub = stub
        self._peer = peer

    async def rpc_ping(self, request: dht_pb2.PingRequest, timeout: float) -> dht_pb2.PingResponse:
        response = await self._stub.rpc_ping(request, timeout=timeout)
        _check_node(response.peer, self._peer)
        return response

    async def rpc_store(self, request: dht_pb2.StoreRequest, timeout: float) -> dht_pb2.StoreResponse:
        response = await self._stub.rpc_store(request, timeout=timeout)
        _check_node(response.peer, self._peer)
        if len(response.store_ok) != len(request.keys):
            raise ValueError("a store reply for other keys")
        return response

    async def rpc_find(self, request: dht_pb2.FindRequest, timeout: float) -> dht_pb2.FindResponse:
        response = await self._stub.rpc_find(request, timeout=timeout)
        _check_node(response.peer, self._peer)
        if len(response.results) != len(request.keys):
            raise ValueError("a find reply for other keys")
        for result in response.results:
            _check_result(result)
        return response


def _check_node(node: dht_pb2.NodeInfo, peer: PeerID) -> None:
    """A node gives no id (a client) or the one that is its own."""
    if node.node_id and node.node_id != node_id_of(peer.to_bytes()):
        raise ValueError(f"{peer} in the place of another node")


def _check_keys(keys: Iterable[bytes], max_keys: int) -> None:
    sizes = [len(key) for key in keys]
    if len(sizes) > max_keys or any(size != NODE_ID_BYTES for size in sizes):
        raise ValueError("keys that are too many or of the wrong size")


def _check_result(result: dht_pb2.FindResult) -> None:
    if not math.isfinite(result.expiration_time):
        raise ValueError("a find reply that is better than any other for ever")
    peers = result.nearest_peer_ids
    if len(peers) > MAX_NEIGHBOURS or any(len(peer) != PEER_ID_BYTES for peer in peers):
        raise ValueError("a find reply with too many neighbours, or with ids that are none of ours")
    if list(result.nearest_node_ids) != [node_id_of(peer) for peer in peers]:
        raise ValueError("a find reply with nodes in the place of others")


def install_guard(swarm_tag: str = "") -> None:
    """Make every `DHTNode` that is created from now on in this process speak the guarded protocol, under the names of
    this swarm (`RecordSeal.swarm_tag`). Idempotent."""
    names = {"_rpc_handlers": None, "_stub_type": None}  # as above: one cache per class
    guarded = type(f"{ShoalDirectoryV1.__name__}{swarm_tag}", (ShoalDirectoryV1,), names)
    hivemind.dht.node.DHTProtocol = guarded if swarm_tag else ShoalDirectoryV1
