"""Pulses: only the owner of a record can say that it is alive, and only when it is."""

from dataclasses import replace

import pytest

from shoal.protocol import limits
from shoal.protocol.errors import InvalidRequest, RecordRejected
from shoal.protocol.herald import Herald
from shoal.protocol.identity import Identity
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.pulses import PULSE_BYTES, PulseChain, earlier, expires_at_s, pulse_due
from shoal.protocol.record_book import RecordBook, tag_of
from shoal.protocol.record_codec import decode_record
from shoal.protocol.records import NodeRecord, roster_name

ALICE, BOB = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2))
ROOT = bytes(range(32))
NOW_S = 1_800_000_000.0
LAYER = LayerId(4)


class FakeClock:
    def __init__(self) -> None:
        self.now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


def record_of(identity: Identity, root: bytes = ROOT, expert: int = 1) -> NodeRecord:
    return NodeRecord(
        peer=identity.peer, model_root=root, experts={LAYER: frozenset({ExpertId(expert)})}, weight_format=1,
        roundings=1, kernel_class=0, capacity_mmacs=0, queue_ms=0, addresses=("127.0.0.1:9",),
    )  # fmt: skip


def root_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


def test_each_pulse_leads_to_the_one_before_it_and_none_to_the_next() -> None:
    chain = PulseChain(ALICE, ROOT, 7)
    assert all(len(chain[index]) == PULSE_BYTES for index in (0, 1, limits.MAX_PULSE))
    assert earlier(chain[1]) == chain[0]
    assert earlier(chain[limits.MAX_PULSE], limits.MAX_PULSE) == chain[0]
    assert earlier(chain[0]) != chain[1]


def test_a_chain_follows_from_key_model_and_time_alone() -> None:
    first = PulseChain(ALICE, ROOT, 7)[0]
    assert PulseChain(ALICE, ROOT, 7)[0] == first
    others = [PulseChain(BOB, ROOT, 7)[0], PulseChain(ALICE, bytes(32), 7)[0], PulseChain(ALICE, ROOT, 8)[0]]
    assert len({first, *others}) == 4


def test_a_pulse_is_due_every_step_and_none_before_the_record() -> None:
    issued_ms, step_s = 1_000_000, limits.PULSE_STEP_S
    assert pulse_due(issued_ms, 1000.0) == pulse_due(issued_ms, 1000.0 + step_s - 0.001) == 0
    assert pulse_due(issued_ms, 1000.0 + 7 * step_s) == 7
    assert pulse_due(issued_ms, 0.0) == 0
    assert expires_at_s(issued_ms, 7) == 1000.0 + 7 * step_s + limits.RECORD_TTL_S


def test_a_herald_signs_once_and_then_tells_pulses() -> None:
    clock = FakeClock()
    herald, book = Herald(ALICE, clock), RecordBook()
    first = herald.say(record_of(ALICE))
    assert (first.is_new, first.index) == (True, 0)
    book.add(first.data, ALICE.peer, clock.now_s)
    for _ in range(3):
        clock.now_s += limits.PULSE_PERIOD_S
        said = herald.say(record_of(ALICE))
        assert (said.is_new, said.data) == (False, first.data)
        assert book.renew(roster_name(ROOT), ALICE.peer, said.index, said.pulse, clock.now_s)
    assert len(book.live(roster_name(ROOT), clock.now_s)) == 1


def test_a_herald_signs_anew_when_something_changed_and_when_the_chain_is_spent() -> None:
    clock = FakeClock()
    herald = Herald(ALICE, clock)
    first = herald.say(record_of(ALICE))
    changed = herald.say(record_of(ALICE, expert=2))
    assert changed.is_new
    assert decode_record(changed.data, ALICE.peer).issued_ms > decode_record(first.data, ALICE.peer).issued_ms
    clock.now_s += (limits.MAX_PULSE + 2) * limits.PULSE_STEP_S
    assert herald.say(record_of(ALICE, expert=2)).is_new


def test_a_clock_that_is_set_back_does_not_make_a_later_record_the_earlier_one() -> None:
    clock = FakeClock()
    herald = Herald(ALICE, clock)
    first = herald.say(record_of(ALICE))
    clock.now_s -= 10
    second = herald.say(record_of(ALICE))
    assert second.is_new
    assert decode_record(second.data, ALICE.peer).issued_ms > decode_record(first.data, ALICE.peer).issued_ms


def test_a_clock_that_was_hours_ahead_leaves_nothing_behind_that_hides_its_node() -> None:
    clock, book = FakeClock(), RecordBook()
    herald = Herald(ALICE, clock)
    clock.now_s += 4 * 3600
    wrong = herald.say(record_of(ALICE))
    book.add(wrong.data, ALICE.peer, clock.now_s)
    clock.now_s = NOW_S
    right = herald.say(record_of(ALICE))
    assert (right.is_new, decode_record(right.data, ALICE.peer).issued_ms) == (True, NOW_S * 1000)
    book.add(right.data, ALICE.peer, clock.now_s)
    assert [kept.data for kept in book.live(roster_name(ROOT), clock.now_s)] == [right.data]


def test_nobody_heralds_for_another() -> None:
    with pytest.raises(InvalidRequest):
        Herald(ALICE, FakeClock()).say(record_of(BOB))


def test_without_pulses_a_record_ends_and_a_pulse_does_not_wake_it() -> None:
    clock, book = FakeClock(), RecordBook()
    herald = Herald(ALICE, clock)
    book.add(herald.say(record_of(ALICE)).data, ALICE.peer, clock.now_s)
    clock.now_s += limits.RECORD_TTL_S
    assert book.live(roster_name(ROOT), clock.now_s) == []
    late = herald.say(record_of(ALICE))
    assert not book.renew(roster_name(ROOT), ALICE.peer, late.index, late.pulse, clock.now_s)
    assert book.add(late.data, ALICE.peer, clock.now_s, late.index, late.pulse).index == late.index


def test_a_pulse_that_is_forged_or_comes_too_early_renews_nothing() -> None:
    clock, book, roster = FakeClock(), RecordBook(), roster_name(ROOT)
    said = Herald(ALICE, clock).say(record_of(ALICE))
    book.add(said.data, ALICE.peer, clock.now_s)
    issued_ms = decode_record(said.data, ALICE.peer).issued_ms
    chain = PulseChain(ALICE, ROOT, issued_ms)
    for index, pulse in ((3, bytes(16)), (3, chain[4]), (limits.MAX_PULSE, chain[limits.MAX_PULSE]), (0, chain[1])):
        assert not book.renew(roster, ALICE.peer, index, pulse, clock.now_s)
    assert not book.renew(roster, BOB.peer, 3, chain[3], clock.now_s)
    assert book.renew(roster, ALICE.peer, 3, chain[3], clock.now_s), "within the skew of clocks"
    assert book.renew(roster, ALICE.peer, 2, chain[2], clock.now_s), "an earlier one is no news and no lie"
    (kept,) = book.live(roster, clock.now_s)
    assert kept.index == 3


def test_a_record_comes_with_a_pulse_of_its_own() -> None:
    clock, book = FakeClock(), RecordBook()
    said = Herald(ALICE, clock).say(record_of(ALICE))
    with pytest.raises(RecordRejected):
        book.add(said.data, ALICE.peer, clock.now_s, 2, bytes(16))


@pytest.mark.parametrize("off_s", [-limits.RECORD_TTL_S, limits.MAX_CLOCK_SKEW_S + 31, 1e6, -1e6])
def test_a_record_out_of_its_time_is_rejected(off_s: float) -> None:
    clock = FakeClock()
    clock.now_s += off_s
    said = Herald(ALICE, clock).say(record_of(ALICE))
    with pytest.raises(RecordRejected, match="expires"):
        RecordBook().add(said.data, ALICE.peer, NOW_S)


def test_a_record_of_a_fast_clock_within_the_skew_is_accepted() -> None:
    clock = FakeClock()
    clock.now_s += limits.MAX_CLOCK_SKEW_S
    said = Herald(ALICE, clock).say(record_of(ALICE))
    assert RecordBook().add(said.data, ALICE.peer, NOW_S).tag == tag_of(said.data)


def test_the_later_record_counts_whatever_the_order() -> None:
    clock, book = FakeClock(), RecordBook()
    herald = Herald(ALICE, clock)
    first, second = herald.say(record_of(ALICE)), herald.say(record_of(ALICE, expert=2))
    for said in (second, first):
        book.add(said.data, ALICE.peer, clock.now_s)
    assert [record.experts for record in book.lookup(ROOT, [LAYER], clock.now_s)[LAYER]] == [{2}]


def test_a_record_that_is_told_again_with_an_older_pulse_takes_nothing_back() -> None:
    clock, book = FakeClock(), RecordBook()
    said = Herald(ALICE, clock).say(record_of(ALICE))
    chain = PulseChain(ALICE, ROOT, decode_record(said.data, ALICE.peer).issued_ms)
    book.add(said.data, ALICE.peer, clock.now_s, 3, chain[3])
    for index, pulse in ((0, chain[0]), (2, chain[2])):
        assert book.add(said.data, ALICE.peer, clock.now_s, index, pulse).index == 3
    (kept,) = book.live(roster_name(ROOT), clock.now_s)
    assert (kept.index, kept.pulse) == (3, chain[3])


def test_a_book_that_is_full_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_HOLDERS_PER_MODEL", 1)
    clock, book = FakeClock(), RecordBook()
    book.add(Herald(ALICE, clock).say(record_of(ALICE)).data, ALICE.peer, clock.now_s)
    with pytest.raises(RecordRejected, match="1 holders already"):
        book.add(Herald(BOB, clock).say(record_of(BOB)).data, BOB.peer, clock.now_s)
    clock.now_s += limits.RECORD_TTL_S
    book.add(Herald(BOB, clock).say(record_of(BOB)).data, BOB.peer, clock.now_s)
    assert [kept.record.peer for kept in book.live(roster_name(ROOT), clock.now_s)] == [BOB.peer]


def test_one_peer_does_not_fill_a_book_with_models() -> None:
    clock, book = FakeClock(), RecordBook()
    herald = Herald(ALICE, clock)
    said = [herald.say(record_of(ALICE, root_of(number))) for number in range(limits.MAX_MODELS_PER_HOLDER + 1)]
    for each in said[:-1]:
        book.add(each.data, ALICE.peer, clock.now_s)
    with pytest.raises(RecordRejected, match="kept already"):
        book.add(said[-1].data, ALICE.peer, clock.now_s)
    book.add(Herald(BOB, clock).say(record_of(BOB)).data, BOB.peer, clock.now_s)
    clock.now_s += limits.RECORD_TTL_S
    again = herald.say(replace(record_of(ALICE, root_of(99)), queue_ms=1))
    book.add(again.data, ALICE.peer, clock.now_s)


def test_all_records_together_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_KEPT_RECORDS", 1)
    clock, book = FakeClock(), RecordBook()
    book.add(Herald(ALICE, clock).say(record_of(ALICE)).data, ALICE.peer, clock.now_s)
    with pytest.raises(RecordRejected, match="1 records"):
        book.add(Herald(BOB, clock).say(record_of(BOB, bytes(32))).data, BOB.peer, clock.now_s)


def test_a_record_for_another_models_roster_is_refused() -> None:
    clock, book = FakeClock(), RecordBook()
    said = Herald(ALICE, clock).say(record_of(ALICE))
    with pytest.raises(RecordRejected, match="another model"):
        book.add(said.data, ALICE.peer, clock.now_s, roster=roster_name(bytes(32)))
    book.add(said.data, ALICE.peer, clock.now_s, roster=roster_name(ROOT))
