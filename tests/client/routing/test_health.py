"""What we learn of a holder decides how long we wait for it and whether we ask it at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.client.routing import health
from shoal.client.routing.health import HEDGE_QUANTILE, MIN_RECENT, NUM_RECENT, Health, Standing
from shoal.protocol.errors import (
    Busy,
    ChannelClosed,
    DeadlineExceeded,
    Draining,
    NonFinite,
    NotHeld,
    PeerFailed,
    ShoalError,
)


def answering(rtt_s: float, times: int = 50) -> Health:
    peer = Health()
    for _ in range(times):
        peer.answered(exchange_s=rtt_s, compute_s=0.0, macs=1)
    return peer


def test_a_deadline_follows_measured_round_trips_and_work() -> None:
    peer = Health()
    for _ in range(50):
        peer.answered(exchange_s=1.2, compute_s=0.2, macs=10**9)
    assert abs(peer.srtt_s - 1.0) < 0.05
    assert peer.deadline_s(0) < 1.5
    assert peer.deadline_s(20 * 10**9) > 10


def test_a_deadline_stays_within_its_bounds() -> None:
    peer = answering(0.0001)
    assert peer.deadline_s(0) == health.MIN_DEADLINE_S
    assert peer.deadline_s(10**15) == health.MAX_DEADLINE_S


def test_a_holder_that_overstates_its_compute_time_does_not_get_a_negative_round_trip() -> None:
    peer = Health()
    peer.answered(exchange_s=0.1, compute_s=100.0, macs=10)
    assert peer.srtt_s == 0


def test_busy_blocks_for_as_long_as_the_peer_asked_and_is_no_failure() -> None:
    peer = Health()
    peer.failed(Busy("full", 2.0), now=10.0, chance=0.0)
    assert peer.standing(11.9) is Standing.BUSY
    assert peer.standing(12.0) is Standing.USABLE
    assert peer.failures == 0


def test_the_breaker_opens_after_three_failures_and_an_answer_closes_it() -> None:
    peer = Health()
    for _ in range(2):
        peer.failed(DeadlineExceeded(), now=0.0, chance=0.0)
    assert peer.standing(0.0) is Standing.USABLE
    peer.failed(PeerFailed(), now=0.0, chance=0.0)
    assert peer.standing(1.0) is Standing.DOUBTED
    peer.answered(0.1, 0.05, 1)
    assert peer.failures == 0
    assert peer.standing(1.0) is Standing.USABLE


def test_a_half_open_breaker_lets_one_probe_through_at_a_time() -> None:
    peer = answering(0.01)
    for _ in range(3):
        peer.failed(DeadlineExceeded(), now=0.0, chance=0.0)
    later = peer.doubted_until
    assert peer.standing(later) is Standing.USABLE
    peer.asked(1, later)
    assert peer.standing(later) is Standing.DOUBTED
    assert peer.standing(later + peer.rto_s(1)) is Standing.USABLE


def test_a_failure_makes_a_holder_dearer_than_its_replica() -> None:
    failed, other = Health(), Health()
    failed.failed(ChannelClosed(), now=0.0, chance=0.0)
    assert failed.cost_s() > other.cost_s()


def test_work_in_flight_makes_a_holder_dearer_until_it_has_ended() -> None:
    asked, other = Health(), Health()
    asked.asked(10**8, now=0.0)
    assert asked.cost_s() > other.cost_s()
    asked.ended(10**8)
    assert asked.cost_s() == other.cost_s()


def test_garbage_blocks_at_once_and_for_long_a_drain_briefly() -> None:
    liar, leaver = Health(), Health()
    liar.failed(NonFinite(), now=0.0, chance=0.0)
    leaver.failed(Draining(), now=0.0, chance=0.0)
    assert liar.standing(health.MISBEHAVIOUR_BACKOFF_S - 1) is Standing.BANNED
    assert leaver.standing(0.0) is Standing.DOUBTED
    assert leaver.standing(health.FIRST_BACKOFF_S) is Standing.USABLE


def test_each_failure_in_a_row_doubles_the_patience_so_that_a_slow_only_holder_is_not_given_up() -> None:
    peer = Health()
    before = peer.deadline_s(0)
    peer.failed(DeadlineExceeded(), now=0.0, chance=0.0)
    peer.failed(DeadlineExceeded(), now=0.0, chance=0.0)
    assert peer.deadline_s(0) == 4 * before


def test_a_hedge_is_sent_past_the_95th_percentile_of_recent_round_trips() -> None:
    peer = Health()
    for number in range(health.NUM_RECENT):
        peer.saw_rtt(0.2 if number % 13 == 0 else 0.01)  # 5 of 64 are late
    assert peer.hedge_after_s(0) == pytest.approx(0.2 + 0.19)
    assert answering(0.01).hedge_after_s(0) == pytest.approx(0.01)


def test_without_experience_a_hedge_waits_for_the_timeout() -> None:
    peer = answering(0.01, times=health.MIN_RECENT - 1)
    assert peer.hedge_after_s(0) == peer.rto_s(0)


def test_who_is_overtaken_is_left_alone_for_a_timeout_and_for_longer_if_it_had_stalled() -> None:
    late, stalled = answering(1.0), answering(1.0)
    late.was_overtaken(late.rto_s(0) - 0.01, 0, now=0.0, chance=1.0)
    assert late.standing(0.0) is Standing.DOUBTED
    assert late.standing(late.rto_s(0)) is Standing.USABLE
    assert late.failures == 0
    stalled.was_overtaken(stalled.rto_s(0), 0, now=0.0, chance=1.0)
    assert stalled.standing(0.0) is Standing.DOUBTED
    assert stalled.standing(health.STALL_BACKOFF * stalled.rto_s(0)) is Standing.USABLE


@pytest.mark.parametrize("error", [Busy("full", 1.0), Draining(), NotHeld(), DeadlineExceeded()])
def test_clients_do_not_all_come_back_at_the_same_moment(error: ShoalError) -> None:
    early, late = Health(failures=5), Health(failures=5)
    early.failed(error, now=0.0, chance=0.0)
    late.failed(error, now=0.0, chance=1.0)
    assert max(early.busy_until, early.doubted_until) < max(late.busy_until, late.doubted_until)


def reading(read_s: float) -> Health:
    """A quick holder whose disk takes so long for an expert, by its own word."""
    peer = answering(0.01)
    peer.macs_per_s = 1e9
    peer.read_was_said(read_s)
    return peer


def test_a_slow_disk_that_says_so_is_given_the_time_to_read_and_the_same_holders_memory_is_not() -> None:
    peer = reading(0.5)
    assert peer.deadline_s(peer.work(10**6, num_cold=4)) > 4 * 0.5 * 2
    assert peer.rto_s(peer.work(10**6, num_cold=4)) > 4 * 0.5 * 2
    assert peer.deadline_s(peer.work(10**6, num_cold=0)) == health.MIN_DEADLINE_S


def test_a_disk_is_not_believed_to_take_for_ever() -> None:
    peer = reading(3600.0)
    assert peer.read_s == health.MAX_READ_S
    assert peer.deadline_s(peer.work(0, num_cold=8)) == health.MAX_DEADLINE_S


def test_answers_from_disk_tell_of_the_disk_and_nothing_of_the_kernel() -> None:
    peer = reading(0.02)
    for _ in range(100):
        peer.answered(exchange_s=1.01, compute_s=1.0, macs=10**6, num_cold=2)
    assert peer.macs_per_s == 1e9
    assert peer.read_s == pytest.approx(0.5, rel=0.01)
    assert peer.srtt_s == pytest.approx(0.01)


def test_what_answers_told_of_a_disk_stays_until_its_owner_says_something_else() -> None:
    peer = reading(0.02)
    peer.answered(exchange_s=1.01, compute_s=1.0, macs=0, num_cold=1)
    learnt = peer.read_s
    peer.read_was_said(0.02)
    assert peer.read_s == learnt > 0.02
    peer.read_was_said(0.03)
    assert peer.read_s == 0.03


def test_a_disk_that_was_quick_of_late_still_has_the_time_that_its_owner_asks_for() -> None:
    """The latest experts are in memory there; the next one may not be."""
    peer = reading(0.5)
    for _ in range(100):
        peer.answered(exchange_s=0.01, compute_s=0.0, macs=0, num_cold=1)
    assert peer.read_s < 0.01
    assert peer.work(0, num_cold=1) == int(0.5 * 1e9)


@given(st.lists(st.floats(1e-4, 10.0), min_size=1, max_size=3 * NUM_RECENT))
def test_the_time_to_hedge_is_that_of_the_latest_round_trips(round_trips_s: list[float]) -> None:
    peer = Health()
    for rtt_s in round_trips_s:
        peer.saw_rtt(rtt_s)
    recent = sorted(round_trips_s[-NUM_RECENT:])
    if len(recent) < MIN_RECENT:
        assert peer.hedge_after_s(0) == peer.rto_s(0)
    else:
        late_s, median_s = recent[int(HEDGE_QUANTILE * (len(recent) - 1))], recent[len(recent) // 2]
        assert peer.hedge_after_s(0) == 2 * late_s - median_s
