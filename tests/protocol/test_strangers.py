"""What a private swarm's directory tells a peer that asks it over libp2p, without a member's word: nothing."""

import asyncio
from collections.abc import Iterator

import pytest

from shoal.protocol.ids import PeerId
from shoal.protocol.membership import Founder
from shoal.protocol.net.dht_dialing import dial_any
from shoal.protocol.net.hivemind_loader import load_hivemind
from shoal.protocol.net.p2pd import P2pd, start_p2pd
from shoal.protocol.record_seal import RecordSeal
from shoal.protocol.sync_messages import Status, SyncReply, SyncRequest, decode_reply, encode_request
from shoal.protocol.version import DIRECTORY_RPC
from tests.protocol.dht_swarm import IDENTITIES, PATIENCE_S, ROOT, find, patience, record_of, swarm  # noqa: F401

load_hivemind()

from hivemind.p2p import P2PHandlerError, PeerID  # noqa: E402
from hivemind.proto import dht_pb2  # noqa: E402

from shoal.protocol.net.hivemind_guard import Words, node_id_of  # noqa: E402

MEMBER = Founder(b"F" * 32).member(b"1" * 16)
SEAL = RecordSeal(MEMBER.directory_secret)
STRANGER = IDENTITIES[6]
REFUSED = SyncReply(Status.REFUSED)


class Intruder:
    """A peer that was told an address, knows the swarm's tag (libp2p tells it) and even a roster's name, not the
    secret."""

    def __init__(self, daemon: P2pd, victim: P2pd) -> None:
        self._daemon, self._p2p, self._victim = daemon, daemon.p2p, victim

    async def enter(self) -> None:
        assert await dial_any(self._daemon, self._victim.addresses)

    async def sync(self, request: SyncRequest) -> SyncReply:
        name, victim = f"{DIRECTORY_RPC}{SEAL.swarm_tag}.rpc_sync", PeerID.from_base58(self._victim.peer)
        return decode_reply(await self._p2p._client.call_unary_handler(victim, name, encode_request(request)))

    async def call(self, rpc: str, request: object, reply: type) -> object:
        name, victim = f"{DIRECTORY_RPC}{SEAL.swarm_tag}.rpc_{rpc}", PeerID.from_base58(self._victim.peer)
        return await self._p2p.call_protobuf_handler(victim, name, request, reply)


def wrong_words(victim: PeerId) -> Iterator[bytes]:
    """None, another swarm's, the victim's own towards the stranger, and one that a member showed the victim."""
    yield b""
    yield RecordSeal(b"e" * 32).word(STRANGER.peer, victim)
    yield SEAL.word(victim, STRANGER.peer)
    yield SEAL.word(IDENTITIES[1].peer, victim)


@pytest.mark.socket
@pytest.mark.usefixtures("patience")
def test_a_stranger_who_asks_every_call_of_the_directory_is_told_nothing_and_is_nobodys_neighbour() -> None:
    async def run() -> None:
        async with swarm(2, membership=MEMBER) as (daemons, directories):
            await directories[1].publish(record_of(IDENTITIES[1]))
            daemon = await start_p2pd(STRANGER)
            try:
                intruder, victim = Intruder(daemon, daemons[0]), daemons[0].peer
                await intruder.enter()
                node = dht_pb2.NodeInfo(node_id=node_id_of(PeerID.from_base58(STRANGER.peer).to_bytes()))
                place = SEAL.name(ROOT)
                for word in wrong_words(victim):
                    auth = dht_pb2.PingRequest(peer=node).auth
                    auth.signature = word
                    with pytest.raises(P2PHandlerError):
                        await intruder.call("ping", dht_pb2.PingRequest(peer=node, auth=auth), dht_pb2.PingResponse)
                    finding = dht_pb2.FindRequest(keys=[node.node_id], peer=node, auth=auth)
                    with pytest.raises(P2PHandlerError):
                        await intruder.call("find", finding, dht_pb2.FindResponse)
                    assert await intruder.sync(SyncRequest(place, is_summary_wanted=True, word=word)) == REFUSED
                assert [directory.num_neighbours for directory in directories] == [1, 1]
                right = SEAL.word(STRANGER.peer, victim)  # the same calls of who has the secret are answered
                asked = dht_pb2.PingRequest(peer=dht_pb2.NodeInfo())
                asked.auth.signature = right
                pong = await intruder.call("ping", asked, dht_pb2.PingResponse)
                assert isinstance(pong, dht_pb2.PingResponse)
                assert SEAL.is_word(pong.auth.signature, victim, STRANGER.peer)
                finding = dht_pb2.FindRequest(keys=[node.node_id], peer=node, auth=asked.auth)
                await intruder.call("find", finding, dht_pb2.FindResponse)
                async with asyncio.timeout(PATIENCE_S):
                    while directories[0].num_neighbours != 2:  # noqa: ASYNC110  # who has asked is known
                        await asyncio.sleep(0)
                assert len((await intruder.sync(SyncRequest(place, is_summary_wanted=True, word=right))).summary) == 1
                assert len(await find(directories[0])) == 1
            finally:
                await daemon.aclose()

    asyncio.run(run())


def test_a_word_is_worth_something_between_two_peers_of_its_swarm_in_one_direction_alone() -> None:
    us, them = (PeerID.from_base58(IDENTITIES[number].peer) for number in (0, 1))
    ours, theirs = Words(SEAL, us, them), Words(SEAL, them, us)
    ours.check(theirs.ours)
    for word in (ours.ours, b"", RecordSeal(b"e" * 32).word(IDENTITIES[1].peer, IDENTITIES[0].peer)):
        with pytest.raises(ValueError, match="no member"):
            ours.check(word)
    Words(RecordSeal(), us, them).check(b"")
    assert Words(RecordSeal(), us, them).ours == b""
    with pytest.raises(ValueError, match="no member"):
        Words(RecordSeal(), us, them).check(theirs.ours)
