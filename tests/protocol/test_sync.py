"""SYNC: what a keeper takes and tells, what a reader believes, and what neither reads."""

from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol import limits
from shoal.protocol.errors import Malformed
from shoal.protocol.herald import Herald, Statement
from shoal.protocol.identity import Identity, public_key_of
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.membership import Founder, Membership
from shoal.protocol.record_keeper import RecordKeeper
from shoal.protocol.record_seal import RecordSeal
from shoal.protocol.records import NodeRecord
from shoal.protocol.sync_messages import (
    MAX_SEALED_LIST_BYTES,
    MAX_SEALED_RECORD_BYTES,
    SentRecord,
    Sign,
    Status,
    SyncReply,
    SyncRequest,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)

ALICE, BOB, CAROL = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2, 3))
ROOT = bytes(range(32))
LAYER = LayerId(4)
NOW_S = 1_800_000_000.0
PLACE = RecordSeal().name(ROOT)
MEMBER = Founder(b"F" * 32).member(b"1" * 16)
SECRET = RecordSeal(MEMBER.directory_secret)
KEEPER = Identity.from_seed(b"\x04" * 32)


def now() -> float:
    return NOW_S


def said_by(identity: Identity, root: bytes = ROOT, voucher: bytes = b"") -> Statement:
    record = NodeRecord(
        peer=identity.peer, model_root=root, experts={LAYER: frozenset({ExpertId(1)})}, weight_format=1, roundings=1,
        kernel_class=0, capacity_mmacs=0, queue_ms=0, addresses=("127.0.0.1:9",),
    )  # fmt: skip
    return Herald(identity, now, voucher).say(record)


def ask(keeper: RecordKeeper, sender: Identity, request: SyncRequest) -> SyncReply:
    return decode_reply(keeper.answer(encode_request(request), sender.peer))


def telling(said: Statement, identity: Identity, seal: RecordSeal | None = None) -> SyncRequest:
    seal = seal or RecordSeal()
    sealed, word = seal.seal(said.data, identity.peer), seal.word(identity.peer, KEEPER.peer)
    return SyncRequest(seal.name(ROOT), sealed, said.index, said.pulse, word=word)


@pytest.fixture
def keeper() -> RecordKeeper:
    return keeper_in(None)


def keeper_in(member: Membership | None) -> RecordKeeper:
    """A keeper of a member's swarm, or of an open one."""
    return RecordKeeper(now, KEEPER.peer, member)


def test_a_keeper_that_knows_a_record_is_content_with_its_pulse(keeper: RecordKeeper) -> None:
    said = said_by(ALICE)
    pulse = replace(telling(said, ALICE), record=b"")
    assert ask(keeper, ALICE, pulse).status is Status.UNKNOWN
    assert ask(keeper, ALICE, telling(said, ALICE)).status is Status.KEPT
    assert ask(keeper, ALICE, pulse).status is Status.KEPT
    assert ask(keeper, BOB, pulse).status is Status.UNKNOWN
    assert ask(keeper, BOB, SyncRequest(PLACE)).status is Status.NOTHING


def test_a_reader_learns_all_from_a_keeper_and_then_pulses_alone(keeper: RecordKeeper) -> None:
    reader = keeper_in(None)
    for identity in (ALICE, BOB):
        ask(keeper, identity, telling(said_by(identity), identity))
    summary = ask(keeper, CAROL, SyncRequest(PLACE, is_summary_wanted=True)).summary
    unknown = reader.unknown(PLACE, summary)
    assert len(unknown) == len(summary) == 2
    reader.take(PLACE, ask(keeper, CAROL, SyncRequest(PLACE, tags=tuple(unknown))).records)
    assert [kept.record.peer for kept in reader.book.live(PLACE, NOW_S)] == sorted([ALICE.peer, BOB.peer])
    assert reader.unknown(PLACE, summary) == []


def test_a_pulse_reaches_readers_through_a_keeper(keeper: RecordKeeper) -> None:
    reader, said = keeper_in(None), said_by(ALICE)
    for each in (keeper, reader):
        each.book.add(said.data, ALICE.peer, NOW_S)
    clock_s = NOW_S + 40
    herald = Herald(ALICE, lambda: clock_s)
    record = keeper.book.live(PLACE, NOW_S)[0].record
    assert herald.say(record).is_new
    clock_s = NOW_S
    herald = Herald(ALICE, lambda: clock_s)
    herald.say(record)
    clock_s = NOW_S + 40
    later = herald.say(record)
    assert ask(keeper, ALICE, SyncRequest(PLACE, index=later.index, pulse=later.pulse)).status is Status.KEPT
    reader.unknown(PLACE, ask(keeper, BOB, SyncRequest(PLACE, is_summary_wanted=True)).summary)
    (kept,) = reader.book.live(PLACE, NOW_S)
    assert kept.index == later.index == 8


def test_a_keeper_takes_from_a_peer_what_is_its_own_and_belongs_here_and_nothing_else(keeper: RecordKeeper) -> None:
    said = said_by(ALICE)
    good = telling(said, ALICE)
    assert ask(keeper, BOB, good).status is Status.REFUSED, "in somebody else's name"
    assert ask(keeper, ALICE, replace(good, place=b"x" * 32)).status is Status.REFUSED, "under another model's name"
    forged = said.data[:-1] + bytes([said.data[-1] ^ 1])
    assert ask(keeper, ALICE, replace(good, record=forged)).status is Status.REFUSED
    assert ask(keeper, ALICE, replace(good, record=b"junk")).status is Status.REFUSED
    assert ask(keeper, ALICE, replace(good, index=3)).status is Status.REFUSED, "a pulse that is not its own"
    assert keeper.book.live(PLACE, NOW_S) == []


def test_a_private_swarms_keeper_takes_what_a_member_has_sealed_and_nothing_else() -> None:
    keeper, said = keeper_in(MEMBER), said_by(ALICE, voucher=MEMBER.vouch(ALICE.public_key))
    good = telling(said, ALICE, SECRET)
    assert ask(keeper, ALICE, replace(good, record=said.data)).status is Status.REFUSED
    assert ask(keeper, ALICE, replace(good, record=RecordSeal(b"e" * 32).seal(said.data, ALICE.peer))).status is (
        Status.REFUSED
    )
    assert ask(keeper, ALICE, replace(good, place=PLACE)).status is Status.REFUSED, "under the public name"
    assert ask(keeper, ALICE, good).status is Status.KEPT
    asked = SyncRequest(good.place, is_summary_wanted=True, word=SECRET.word(BOB.peer, KEEPER.peer))
    (tag,) = (sign.tag for sign in ask(keeper, BOB, asked).summary)
    (sent,) = ask(keeper, BOB, replace(asked, tags=(tag,))).records
    assert sent.sealed == good.record
    member, stranger = keeper_in(MEMBER), keeper_in(None)
    for reader, num_read in ((member, 1), (stranger, 0)):
        reader.take(good.place, (sent,))
        assert len(reader.book.live(good.place, NOW_S)) == num_read


def test_a_reader_believes_no_keeper(keeper: RecordKeeper) -> None:
    said, other = said_by(ALICE), said_by(ALICE, bytes(32))
    key = ALICE.public_key
    keeper.take(
        PLACE,
        (
            SentRecord(BOB.public_key, said.data, 0, said.pulse),
            SentRecord(key, said.data[:-1] + b"\x00", 0, said.pulse),
            SentRecord(key, said.data, 5, bytes(16)),
            SentRecord(key, other.data, 0, other.pulse),
            SentRecord(bytes(32), said.data, 0, said.pulse),
        ),
    )
    assert keeper.book.live(PLACE, NOW_S) == []
    keeper.take(PLACE, (SentRecord(key, said.data, 0, said.pulse),))
    (kept,) = keeper.book.live(PLACE, NOW_S)
    assert keeper.unknown(PLACE, (Sign(kept.tag, 9, bytes(16)),)) == []
    assert keeper.book.live(PLACE, NOW_S) == [kept], "a forged pulse renews nothing"


def test_what_is_no_request_is_refused_without_a_word_more(keeper: RecordKeeper) -> None:
    assert decode_reply(keeper.answer(b"junk", ALICE.peer)) == SyncReply(Status.REFUSED)


def test_a_reply_with_all_that_may_be_in_it_is_within_the_limit() -> None:
    sign, key = Sign(b"t" * 12, limits.MAX_PULSE, b"p" * 16), public_key_of(ALICE.peer)
    sent = SentRecord(key, b"s" * MAX_SEALED_RECORD_BYTES, limits.MAX_PULSE, b"p" * 16)
    reply = SyncReply(
        Status.KEPT, (sign,) * limits.MAX_HOLDERS_PER_MODEL, (sent,) * limits.MAX_TAGS_PER_SYNC,
        limits.MAX_REVOKED_TOKENS, b"l" * MAX_SEALED_LIST_BYTES,
    )  # fmt: skip
    data = encode_reply(reply)
    assert len(data) <= limits.MAX_SYNC_BYTES
    assert decode_reply(data) == reply


@given(
    st.binary(max_size=99), st.integers(0, limits.MAX_PULSE), st.booleans(), st.booleans(),
    st.lists(st.binary(min_size=12, max_size=12), max_size=limits.MAX_TAGS_PER_SYNC), st.integers(0, 192),
    st.binary(max_size=99),
)  # fmt: skip
def test_every_request_survives_its_way(
    record: bytes, index: int, has_pulse: bool, is_summary_wanted: bool, tags: list[bytes], number: int, news: bytes
) -> None:
    pulse = b"p" * 16 if has_pulse else b""
    record, index = (record, index) if has_pulse else (b"", 0)
    request = SyncRequest(PLACE, record, index, pulse, is_summary_wanted, tuple(tags), number, news)
    assert decode_request(encode_request(request)) == request


@given(st.binary(max_size=200))
def test_noise_is_malformed_and_nothing_else(data: bytes) -> None:
    for decode in (decode_request, decode_reply):
        with pytest.raises(Malformed):
            decode(data)


GOOD_REQUEST: dict[object, Any] = {1: 2, 2: PLACE, 3: b"r", 4: 1, 5: b"p" * 16, 6: 1, 7: b"t" * 12, 8: 1, 9: b"l"}
GOOD_REPLY: dict[object, Any] = {
    1: 2,
    2: 1,
    3: b"s" * 12 + b"\x00\x01" + b"p" * 16,
    4: [[bytes(32), b"r" * 65, 0, bytes(16)]],
    5: 1,
    6: b"l",
}


@pytest.mark.parametrize(
    "changes",
    [{1: 1}, {2: bytes(31)}, {3: b""}, {3: "r"}, {3: bytes(MAX_SEALED_RECORD_BYTES + 1)}, {4: limits.MAX_PULSE + 1},
     {4: None}, {5: bytes(15)}, {6: 0}, {6: True}, {7: b""}, {7: b"t" * 13}, {7: b"t" * 12 * 33}, {8: 0}, {8: 193},
     {9: bytes(MAX_SEALED_LIST_BYTES + 1)}, {10: 1}, {0: 1}, {"a": 1}],
    ids=repr,
)  # fmt: skip
def test_a_request_out_of_bounds_is_malformed(changes: dict[object, object]) -> None:
    decode_request(msgpack.packb(GOOD_REQUEST))
    with pytest.raises(Malformed):
        decode_request(msgpack.packb({**GOOD_REQUEST, **changes}))


@pytest.mark.parametrize("missing", [(1,), (2,), (4,), (5,), (4, 5)])
def test_a_request_that_lacks_what_belongs_together_is_malformed(missing: tuple[int, ...]) -> None:
    with pytest.raises(Malformed):
        decode_request(msgpack.packb({key: value for key, value in GOOD_REQUEST.items() if key not in missing}))


@pytest.mark.parametrize(
    "changes",
    [{1: 1}, {2: 4}, {2: None}, {3: b""}, {3: bytes(31)}, {3: b"s" * 12 + b"\xff\xff" + bytes(16)}, {4: []}, {4: b"x"},
     {4: [[bytes(31), b"r" * 65, 0, bytes(16)]]}, {4: [[bytes(32), b"r" * 64, 0, bytes(16)]]}, {4: [[1, 2]]},
     {4: [[[[[]]]]]}, {4: [[bytes(32), b"r" * 65, -1, bytes(16)]]}, {4: [[bytes(32), b"r" * 65, 0, 1]]},
     {4: GOOD_REPLY[4] * 33}, {5: 0}, {6: b""}, {7: 1}],
    ids=repr,
)  # fmt: skip
def test_a_reply_out_of_bounds_is_malformed(changes: dict[object, object]) -> None:
    decode_reply(msgpack.packb(GOOD_REPLY))
    with pytest.raises(Malformed):
        decode_reply(msgpack.packb({**GOOD_REPLY, **changes}))


def test_a_message_that_is_not_canonical_is_malformed() -> None:
    for good, decode in ((GOOD_REQUEST, decode_request), (GOOD_REPLY, decode_reply)):
        data = msgpack.packb(good)
        for other in (
            msgpack.packb(dict(reversed(good.items()))),
            data + b"\x00",
            data.replace(b"\x01\x02", b"\x01\xcc\x02", 1),
        ):
            with pytest.raises(Malformed):
                decode(other)
