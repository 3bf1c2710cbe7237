"""Records of a private swarm: believed while a member whose token is good vouches for their node, and not longer."""

import time
from dataclasses import replace

import pytest

from shoal.protocol.errors import AuthenticationFailed, RecordRejected
from shoal.protocol.herald import Herald, Statement
from shoal.protocol.identity import Identity
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.membership import VOUCHER_BYTES, Founder, MemberGate, token_id
from shoal.protocol.record_book import RecordBook
from shoal.protocol.record_codec import decode_record
from shoal.protocol.record_keeper import RecordKeeper
from shoal.protocol.records import NodeRecord, roster_name
from shoal.protocol.revocation_list import RevocationBook, sign_revocations
from shoal.protocol.sync_messages import SyncRequest, decode_reply, encode_request

ALICE, BOB, KEEPER = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2, 3))
OURS, THEIRS = Founder(b"F" * 32), Founder(b"G" * 32)
ANA, BEN, STRANGER = OURS.member(b"1" * 16), OURS.member(b"2" * 16), THEIRS.member(b"1" * 16)
ROOT, LAYER, NOW_S = bytes(range(32)), LayerId(4), 1_800_000_000.0
ROSTER = roster_name(ROOT)


def now() -> float:
    return NOW_S


def said_by(identity: Identity, voucher: bytes = b"") -> Statement:
    record = NodeRecord(
        peer=identity.peer, model_root=ROOT, experts={LAYER: frozenset({ExpertId(1)})}, weight_format=1, roundings=1,
        kernel_class=0, capacity_mmacs=0, queue_ms=0, addresses=("127.0.0.1:9",),
    )  # fmt: skip
    return Herald(identity, now, voucher).say(record)


def test_a_voucher_costs_163_bytes_and_an_open_swarms_record_none() -> None:
    with_it, without = said_by(ALICE, ANA.vouch(ALICE.public_key)).data, said_by(ALICE).data
    assert len(with_it) - len(without) == VOUCHER_BYTES + 3 == 163
    assert decode_record(with_it, ALICE.peer).voucher == ANA.vouch(ALICE.public_key)
    assert decode_record(without, ALICE.peer).voucher == b""


def test_a_private_swarms_book_takes_records_of_members_nodes_alone() -> None:
    book = RecordBook(gate=MemberGate(ANA.founder_key))
    good = ANA.vouch(ALICE.public_key)
    forged = replace(STRANGER, founder_key=ANA.founder_key, directory_secret=ANA.directory_secret)
    for voucher in (
        b"", STRANGER.vouch(ALICE.public_key), forged.vouch(ALICE.public_key), ANA.vouch(BOB.public_key),
        good[:32] + BEN.vouch(ALICE.public_key)[32:], bytes(VOUCHER_BYTES),
    ):  # fmt: skip
        with pytest.raises(RecordRejected, match="no member"):
            book.add(said_by(ALICE, voucher).data, ALICE.peer, NOW_S)
    assert book.live(ROSTER, NOW_S) == []
    assert book.add(said_by(ALICE, good).data, ALICE.peer, NOW_S).token_id == token_id(ANA.token_key)


def test_an_open_swarms_book_takes_no_members_record() -> None:
    with pytest.raises(RecordRejected, match="open swarm"):
        RecordBook().add(said_by(ALICE, ANA.vouch(ALICE.public_key)).data, ALICE.peer, NOW_S)


def test_a_voucher_is_no_proof_in_a_handshake_and_a_proof_there_no_voucher() -> None:
    gate, voucher = MemberGate(ANA.founder_key), ANA.vouch(ALICE.public_key)
    with pytest.raises(AuthenticationFailed):
        gate.admit(voucher[:32], voucher[32:96], voucher[96:], ALICE.public_key)
    with pytest.raises(AuthenticationFailed):
        gate.check_voucher(voucher[:96] + ANA.prove(ALICE.public_key), ALICE.public_key)


def test_a_node_is_gone_with_its_members_token_and_others_stay() -> None:
    revocations = RevocationBook(ANA.founder_key)
    book = RecordBook(gate=MemberGate(ANA.founder_key, revocations))
    alice, bob = said_by(ALICE, ANA.vouch(ALICE.public_key)), said_by(BOB, BEN.vouch(BOB.public_key))
    for said, identity in ((alice, ALICE), (bob, BOB)):
        book.add(said.data, identity.peer, NOW_S)
    assert book.renew(ROSTER, ALICE.peer, 0, alice.pulse, NOW_S)
    revocations.take(sign_revocations([token_id(ANA.token_key)], OURS.identity).encoded)
    assert not book.renew(ROSTER, ALICE.peer, 0, alice.pulse, NOW_S), "its pulses renew nothing"
    assert (book.is_barred(ALICE.peer), book.is_barred(BOB.peer), book.is_barred(KEEPER.peer)) == (True, False, False)
    assert [record.peer for record in book.lookup(ROOT, [LAYER], NOW_S)[LAYER]] == [BOB.peer]
    with pytest.raises(RecordRejected, match="revoked"):
        book.add(said_by(ALICE, ANA.vouch(ALICE.public_key)).data, ALICE.peer, NOW_S)
    assert book.add(said_by(ALICE, BEN.vouch(ALICE.public_key)).data, ALICE.peer, NOW_S), "its key, another's word"
    assert not book.is_barred(ALICE.peer)


def test_a_keeper_that_knows_of_a_revocation_passes_the_members_node_on_no_more() -> None:
    keeper = RecordKeeper(now, KEEPER.peer, BEN)
    seal, said = keeper.seal, said_by(ALICE, ANA.vouch(ALICE.public_key))
    keeper.book.add(said.data, ALICE.peer, NOW_S)
    asked = SyncRequest(seal.name(ROOT), is_summary_wanted=True, word=seal.word(BOB.peer, KEEPER.peer))

    def num_told() -> int:
        return len(decode_reply(keeper.answer(encode_request(asked), BOB.peer)).summary)

    assert num_told() == 1
    founded = RecordKeeper(time.time, BOB.peer, BEN)
    assert founded.revocations is not None
    founded.revocations.take(sign_revocations([token_id(ANA.token_key)], OURS.identity).encoded)
    keeper.take_revocations(founded.sealed_revocations)
    assert num_told() == 0
