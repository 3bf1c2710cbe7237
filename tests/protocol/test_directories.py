"""Directories without a network, and invite tokens."""

import asyncio
import base64
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol import limits
from shoal.protocol.errors import InvalidRequest, RecordRejected
from shoal.protocol.identity import Identity
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.invite import Invite, decode_invite, encode_invite
from shoal.protocol.net.memory_directory import MemoryDirectory
from shoal.protocol.net.static_directory import StaticDirectory, owner_of
from shoal.protocol.record_book import RecordBook
from shoal.protocol.records import HolderRecord, encode_record

ALICE, BOB = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2))
ROOT = bytes(range(32))
LAYER = LayerId(4)
NOW_S = 1_800_000_000.0
ADDRESS = f"/ip4/192.0.2.7/tcp/4001/p2p/{ALICE.peer}"


class FakeClock:
    def __init__(self) -> None:
        self.now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


def record_of(identity: Identity, seq: int = 1, layer: LayerId = LAYER, ttl_s: float = 90.0) -> HolderRecord:
    return HolderRecord(
        peer=identity.peer,
        model_root=ROOT,
        layer=layer,
        experts=frozenset({ExpertId(1)}),
        weight_format=1,
        roundings=1,
        kernel_class=0,
        capacity_mmacs=0,
        queue_ms=0,
        addresses=("127.0.0.1:9",),
        seq=seq,
        expires_at_s=NOW_S + ttl_s,
    )


def find(directory: MemoryDirectory | StaticDirectory) -> list[HolderRecord]:
    return asyncio.run(directory.lookup(ROOT, [LAYER]))[LAYER]


def test_what_one_peer_publishes_in_memory_all_find_until_it_expires() -> None:
    book, clock = RecordBook(), FakeClock()
    alice, bob = MemoryDirectory(book, ALICE, clock), MemoryDirectory(book, BOB, clock)
    asyncio.run(alice.publish([record_of(ALICE), record_of(ALICE, layer=LayerId(5))]))
    asyncio.run(bob.publish([record_of(BOB, ttl_s=30)]))
    assert find(alice) == sorted([record_of(ALICE), record_of(BOB, ttl_s=30)], key=lambda record: record.peer)
    assert asyncio.run(alice.lookup(ROOT, [LayerId(6), LayerId(5)])).keys() == {LayerId(6), LayerId(5)}
    assert asyncio.run(alice.lookup(bytes(32), [LAYER])) == {LAYER: []}
    clock.now_s += 30
    assert find(bob) == [record_of(ALICE)]
    clock.now_s += 60
    assert find(bob) == []
    asyncio.run(alice.aclose())


def test_the_newest_seq_wins_whatever_the_order() -> None:
    book, clock = RecordBook(), FakeClock()
    alice = MemoryDirectory(book, ALICE, clock)
    for seq in (2, 3, 1):
        asyncio.run(alice.publish([record_of(ALICE, seq)]))
    assert [record.seq for record in find(alice)] == [3]
    asyncio.run(alice.publish([replace(record_of(ALICE, 4, ttl_s=5), experts=frozenset())]))
    assert [record.experts for record in find(alice)] == [frozenset()]


def test_nobody_publishes_for_another_or_for_longer_than_allowed() -> None:
    alice = MemoryDirectory(RecordBook(), ALICE, FakeClock())
    with pytest.raises(InvalidRequest):
        asyncio.run(alice.publish([record_of(BOB)]))
    with pytest.raises(RecordRejected):
        asyncio.run(alice.publish([record_of(ALICE, ttl_s=500)]))
    with pytest.raises(RecordRejected):
        asyncio.run(alice.publish([record_of(ALICE, ttl_s=-1)]))


def test_a_full_layer_keeps_its_live_holders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_HOLDERS_PER_LAYER", 1)
    book, clock = RecordBook(), FakeClock()
    asyncio.run(MemoryDirectory(book, ALICE, clock).publish([record_of(ALICE, ttl_s=10)]))
    bob = MemoryDirectory(book, BOB, clock)
    with pytest.raises(RecordRejected, match="1 holders already"):
        asyncio.run(bob.publish([record_of(BOB)]))
    clock.now_s += 10
    asyncio.run(bob.publish([record_of(BOB)]))
    assert [record.peer for record in find(bob)] == [BOB.peer]


def test_lines_carry_records_from_one_static_directory_to_another() -> None:
    clock = FakeClock()
    alice, bob = StaticDirectory(ALICE, clock), StaticDirectory(BOB, clock)
    asyncio.run(alice.publish([record_of(ALICE, 1), record_of(ALICE, 1, LayerId(5)), record_of(ALICE, 2)]))
    assert len(alice.lines()) == 2
    signed = encode_record(record_of(BOB), BOB)
    forged = base64.b64encode(encode_record(record_of(ALICE, 9), ALICE)[:-1] + b"\x00").decode()
    lines = ["# our lab", "", *alice.lines(), forged, "not base64!", "AAAA", base64.b64encode(b"\xc1").decode()]
    assert bob.read_lines([*lines, signed]) == 3
    assert {record.peer: record.seq for record in find(bob)} == {ALICE.peer: 2, BOB.peer: 1}
    clock.now_s += 90
    assert find(bob) == []
    assert bob.read_lines(alice.lines()) == 0
    asyncio.run(bob.aclose())


@given(st.binary(max_size=100))
def test_a_line_of_noise_has_no_owner(data: bytes) -> None:
    with pytest.raises(RecordRejected):
        owner_of(data)


def test_an_invite_survives_its_way() -> None:
    invite = Invite(ROOT, (ADDRESS, f"/ip6/::1/tcp/1/p2p/{BOB.peer}"))
    token = encode_invite(invite)
    assert token.startswith("shoal1")
    assert token.removeprefix("shoal1").replace("-", "").replace("_", "").isalnum()
    assert decode_invite(f"  {token}\n") == invite


@pytest.mark.parametrize(
    "invite",
    [
        Invite(b"short", (ADDRESS,)),
        Invite(ROOT, ()),
        Invite(ROOT, (ADDRESS,) * 9),
        Invite(ROOT, ("127.0.0.1:4001",)),
        Invite(ROOT, ("/ip4/127.0.0.1/tcp/1",)),
        Invite(ROOT, (f"/dns4/{'x' * 80}/tcp/1/p2p/{ALICE.peer}",)),
        Invite(ROOT, (f"/ip4/127.0.0.1/tcp/1\n/p2p/{ALICE.peer}",)),
    ],
)
def test_an_invite_that_leads_nowhere_is_refused(invite: Invite) -> None:
    with pytest.raises(InvalidRequest):
        encode_invite(invite)


def token_of(fields: object) -> str:
    return "shoal1" + base64.urlsafe_b64encode(msgpack.packb(fields)).decode().rstrip("=")


@pytest.mark.parametrize(
    "token",
    [
        "",
        "shoal1",
        "shoal2AAAA",
        "https://example.org",
        "shoal1" + "A" * 5000,
        "shoal1äöü",
        encode_invite(Invite(ROOT, (ADDRESS,)))[:-5],
        encode_invite(Invite(ROOT, (ADDRESS,))) + "A",
        token_of({1: 2, 2: ROOT, 3: [ADDRESS]}).replace("shoal1", "shoal2"),
        token_of({1: 2, 2: ROOT, 3: [ADDRESS]}),
        token_of({1: 1, 2: ROOT}),
        token_of({3: [ADDRESS], 2: ROOT, 1: 1}),
        token_of({1: 1, 2: ROOT, 3: [7]}),
        token_of([1, 2]),
        token_of({1: 1, 2: ROOT, 3: [ADDRESS], 4: 0}),
        token_of({1: 1, 2: "x", 3: ADDRESS}),
    ],
)
def test_a_mangled_token_is_the_users_error(token: str) -> None:
    with pytest.raises(InvalidRequest):
        decode_invite(token)


@given(st.text(max_size=60))
def test_no_text_breaks_the_reader_of_tokens(text: str) -> None:
    with pytest.raises(InvalidRequest):
        decode_invite("shoal1" + text)
