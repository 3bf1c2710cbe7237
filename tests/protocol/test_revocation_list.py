"""What a founder has revoked stays revoked, wherever the word comes from; nobody else can revoke."""

import asyncio
import time

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol import limits
from shoal.protocol.errors import AuthenticationFailed, InvalidRequest, RecordRejected
from shoal.protocol.identity import Identity, peer_id_of
from shoal.protocol.membership import Founder
from shoal.protocol.net.hivemind_dht import HivemindDirectory, join_dht
from shoal.protocol.net.memory_directory import MemoryBoard
from shoal.protocol.net.p2pd import start_p2pd
from shoal.protocol.record_keeper import RecordKeeper
from shoal.protocol.record_seal import RecordSeal
from shoal.protocol.revocation_list import RevocationBook, RevocationList, read_revocations, sign_revocations
from shoal.protocol.sync_messages import SyncRequest, decode_reply, encode_request
from shoal.protocol.version import REVOCATION_CONTEXT

FOUNDER, STRANGER = Founder(b"F" * 32).identity, Founder(b"G" * 32).identity
KEY = FOUNDER.public_key
MEMBER = Founder(b"F" * 32).member(b"1" * 16)
IDS = [f"{number:016x}" for number in range(1, 8)]
ONE, TWO, THREE = (sign_revocations(IDS[:count], FOUNDER) for count in (1, 2, 3))
PEERS = [Identity.from_seed(bytes([number]) * 32) for number in (51, 52, 53)]


def test_a_list_survives_its_way_whatever_order_it_was_made_in() -> None:
    assert read_revocations(TWO.encoded, KEY) == TWO == sign_revocations(reversed(IDS[:2]), FOUNDER)
    assert TWO.number == 2
    longest = sign_revocations([f"{number:016x}" for number in range(limits.MAX_REVOKED_TOKENS)], FOUNDER)
    assert len(longest.encoded) <= limits.MAX_REVOCATION_BYTES
    assert read_revocations(longest.encoded, KEY) == longest


@pytest.mark.parametrize("ids", [[], ["no hex"], ["00"], [f"{n:016x}" for n in range(limits.MAX_REVOKED_TOKENS + 1)]])
def test_what_is_no_list_is_not_signed(ids: list[str]) -> None:
    with pytest.raises(InvalidRequest):
        sign_revocations(ids, FOUNDER)


def resigned(identity: Identity = FOUNDER, **changed: object) -> bytes:
    """A list with other fields, with a signature that fits them."""
    fields = {1: 1, 2: KEY, 3: 1, 4: bytes.fromhex(IDS[0])} | {int(key[1:]): value for key, value in changed.items()}
    return bytes(msgpack.packb({**fields, 5: identity.sign(REVOCATION_CONTEXT + msgpack.packb(fields))}))


@pytest.mark.parametrize(
    "encoded",
    [
        sign_revocations(IDS, STRANGER).encoded,
        resigned(_1=2), resigned(_3=0), resigned(_3=2), resigned(_3=limits.MAX_REVOKED_TOKENS + 1), resigned(_4=b""),
        resigned(_4="text"), resigned(_3=2, _4=bytes.fromhex(IDS[1] + IDS[0])),
        resigned(_3=2, _4=bytes.fromhex(IDS[0] + IDS[0])), resigned(_6=1), ONE.encoded + b"\x00", b"", b"\xc0",
        b"\x91" * 900, b"x" * (limits.MAX_REVOCATION_BYTES + 1),
    ],
    ids=str,
)  # fmt: skip
def test_a_list_that_breaks_a_rule_is_refused(encoded: bytes) -> None:
    with pytest.raises(RecordRejected):
        read_revocations(encoded, KEY)


def test_a_member_can_not_revoke() -> None:
    forged = resigned(Identity.from_seed(MEMBER.token_seed))
    with pytest.raises(AuthenticationFailed):
        read_revocations(forged, KEY)


@given(st.binary(max_size=300), st.integers(0, 200))
def test_damage_is_refused(noise: bytes, position: int) -> None:
    damaged = TWO.encoded[:position] + noise + TWO.encoded[position + len(noise) :]
    if damaged != TWO.encoded:
        with pytest.raises((RecordRejected, AuthenticationFailed)):
            read_revocations(damaged, KEY)


def test_an_earlier_list_takes_nothing_back() -> None:
    book = RevocationBook(KEY)
    assert not book(IDS[0])
    assert book.take(TWO.encoded)
    assert not book.take(TWO.encoded)
    rival = sign_revocations(IDS[4:6], FOUNDER)
    for earlier in (ONE, rival):
        with pytest.raises(RecordRejected, match="after 2"):
            book.take(earlier.encoded)
    assert [book(each) for each in IDS[:3]] == [True, True, False]
    assert book.take(THREE.encoded)
    assert book.latest == THREE
    assert book(IDS[2])


def test_the_board_in_memory_keeps_every_number_until_it_expires() -> None:
    now_s = 1000.0
    board = MemoryBoard(lambda: now_s)
    for revocations in (TWO, ONE):
        asyncio.run(board.post(revocations))
    assert {each.encoded for each in asyncio.run(board.posted())} == {ONE.encoded, TWO.encoded}
    now_s += limits.RECORD_TTL_S
    assert asyncio.run(board.posted()) == []


async def lists(directory: HivemindDirectory) -> set[bytes]:
    return {each.encoded for each in await directory.posted()}


@pytest.mark.socket
def test_the_directory_hands_a_list_to_every_member_and_an_earlier_one_hides_no_later_one() -> None:
    async def run() -> None:
        daemons = [await start_p2pd(each) for each in PEERS]
        directories: list[HivemindDirectory] = []
        try:
            for daemon, identity in zip(daemons, PEERS, strict=True):
                join = daemons[0].addresses if directories else ()
                directories.append(
                    await join_dht(daemon, identity, join, time.time, membership=MEMBER, model_root=bytes(32))
                )
            assert await lists(directories[2]) == set()
            await directories[0].post(TWO)
            assert await lists(directories[2]) == {TWO.encoded}
            await directories[1].post(ONE)  # a member that knows an earlier one only
            for directory in directories:
                assert await lists(directory) == {TWO.encoded}
        finally:
            for directory in directories:
                await directory.aclose()
            for daemon in daemons:
                await daemon.aclose()

    asyncio.run(run())


def test_a_keeper_takes_no_list_but_its_founders_and_none_that_is_earlier() -> None:
    seal = RecordSeal(MEMBER.directory_secret)
    place, founder = seal.name(bytes(32)), peer_id_of(KEY)

    def is_taken(revocations: RevocationList, sealed: RecordSeal = seal, known: RevocationList | None = None) -> bool:
        keeper = RecordKeeper(time.time, PEERS[1].peer, MEMBER)
        if known is not None:
            keeper.take_revocations(seal.seal(known.encoded, founder))
        word = seal.word(PEERS[0].peer, PEERS[1].peer)
        request = SyncRequest(place, list_number=1, revocations=sealed.seal(revocations.encoded, founder), word=word)
        reply = decode_reply(keeper.answer(encode_request(request), PEERS[0].peer))
        return reply.list_number == revocations.number

    assert is_taken(TWO)
    assert is_taken(TWO, known=ONE)
    assert not is_taken(ONE, known=TWO)
    assert not is_taken(TWO, sealed=RecordSeal(b"e" * 32))
    assert not is_taken(sign_revocations(IDS[:2], STRANGER))


def test_a_list_goes_to_who_knows_an_earlier_one_and_to_nobody_else() -> None:
    seal = RecordSeal(MEMBER.directory_secret)
    keeper, word = RecordKeeper(time.time, PEERS[1].peer, MEMBER), seal.word(PEERS[0].peer, PEERS[1].peer)
    keeper.take_revocations(seal.seal(TWO.encoded, peer_id_of(KEY)))
    for known, is_sent in ((0, True), (1, True), (2, False), (3, False)):
        request = encode_request(SyncRequest(seal.name(bytes(32)), list_number=known, word=word))
        reply = decode_reply(keeper.answer(request, PEERS[0].peer))
        assert (reply.list_number, bool(reply.revocations)) == (2, is_sent)
    asker = RecordKeeper(time.time, PEERS[0].peer, MEMBER)
    asker.take_revocations(keeper.sealed_revocations)
    assert asker.list_number == 2
    assert RecordKeeper(time.time, PEERS[0].peer).list_number == 0
