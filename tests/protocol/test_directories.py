"""Directories without a network, and invite tokens."""

import asyncio
import base64
import operator
from dataclasses import replace
from functools import partial

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol import limits
from shoal.protocol.errors import InvalidRequest, RecordRejected
from shoal.protocol.identity import Identity
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.invite import Invite, decode_invite, encode_invite
from shoal.protocol.net.memory_directory import MemoryDirectory
from shoal.protocol.net.static_directory import StaticDirectory
from shoal.protocol.record_book import RecordBook
from shoal.protocol.records import NodeRecord

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


def record_of(identity: Identity, layer: LayerId = LAYER, expert: int = 1) -> NodeRecord:
    return NodeRecord(
        peer=identity.peer,
        model_root=ROOT,
        experts={layer: frozenset({ExpertId(expert)})},
        weight_format=1,
        roundings=1,
        kernel_class=0,
        capacity_mmacs=0,
        queue_ms=0,
        addresses=("127.0.0.1:9",),
    )


def find(directory: MemoryDirectory | StaticDirectory) -> dict[PeerId, set[ExpertId]]:
    found = asyncio.run(directory.lookup(ROOT, [LAYER]))[LAYER]
    return {record.peer: set(record.experts) for record in found}


def test_what_one_peer_publishes_in_memory_all_find_until_it_falls_silent() -> None:
    book, clock = RecordBook(), FakeClock()
    alice, bob = MemoryDirectory(book, ALICE, clock), MemoryDirectory(book, BOB, clock)
    asyncio.run(alice.publish(record_of(ALICE)))
    asyncio.run(bob.publish(record_of(BOB, LayerId(5))))
    assert find(alice) == {ALICE.peer: {1}, BOB.peer: set()}
    assert asyncio.run(alice.lookup(ROOT, [LayerId(6), LayerId(5)])).keys() == {LayerId(6), LayerId(5)}
    assert asyncio.run(alice.lookup(bytes(32), [LAYER])) == {LAYER: []}
    clock.now_s += limits.PULSE_PERIOD_S
    asyncio.run(alice.publish(record_of(ALICE)))
    clock.now_s += limits.RECORD_TTL_S - limits.PULSE_PERIOD_S
    assert find(bob) == {ALICE.peer: {1}}
    clock.now_s += limits.PULSE_PERIOD_S
    assert find(bob) == {}
    asyncio.run(alice.publish(record_of(ALICE)))
    assert find(bob) == {ALICE.peer: {1}}, "after a long silence"
    asyncio.run(alice.aclose())


def test_what_is_said_last_counts() -> None:
    book, clock = RecordBook(), FakeClock()
    alice = MemoryDirectory(book, ALICE, clock)
    for expert in (2, 3):
        asyncio.run(alice.publish(record_of(ALICE, expert=expert)))
    assert find(alice) == {ALICE.peer: {3}}
    asyncio.run(alice.publish(replace(record_of(ALICE), experts={})))
    assert find(alice) == {ALICE.peer: set()}


def test_nobody_publishes_for_another_or_in_another_time() -> None:
    clock = FakeClock()
    alice = MemoryDirectory(RecordBook(), ALICE, clock)
    with pytest.raises(InvalidRequest):
        asyncio.run(alice.publish(record_of(BOB)))
    for off_s in (-3600.0, 3600.0):
        elsewhen = MemoryDirectory(RecordBook(), ALICE, clock, partial(operator.add, NOW_S, off_s))
        with pytest.raises(RecordRejected):
            asyncio.run(elsewhen.publish(record_of(ALICE)))


def test_lines_carry_records_from_one_static_directory_to_another() -> None:
    clock = FakeClock()
    alice, bob = StaticDirectory(ALICE, clock), StaticDirectory(BOB, clock)
    asyncio.run(alice.publish(record_of(ALICE, expert=1)))
    asyncio.run(alice.publish(record_of(ALICE, expert=2)))
    asyncio.run(bob.publish(record_of(BOB)))
    (line,) = alice.lines()
    forged = base64.b64encode(base64.b64decode(line)[:-1] + b"\x00").decode()
    lines = ["# our lab", "", f"  {line}\n", forged, "not base64!", "AAAA", base64.b64encode(b"\xc1").decode()]
    assert bob.read_lines(lines) == 1
    assert find(bob) == {ALICE.peer: {2}, BOB.peer: {1}}
    clock.now_s += limits.RECORD_TTL_S + 1
    assert find(bob) == {}
    assert bob.read_lines(alice.lines()) == 0
    asyncio.run(alice.publish(record_of(ALICE, expert=2)))
    assert bob.read_lines(alice.lines()) == 1
    assert find(bob) == {ALICE.peer: {2}}
    asyncio.run(bob.aclose())


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
