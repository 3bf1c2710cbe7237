"""What we learn of a holder decides how long we wait for it and whether we ask it at all."""

from shoal.client import health
from shoal.client.health import Health
from shoal.protocol.errors import Busy, ChannelClosed, DeadlineExceeded, Draining, NonFinite, PeerFailed


def test_a_deadline_follows_measured_round_trips_and_work() -> None:
    peer = Health()
    for _ in range(50):
        peer.answered(exchange_s=1.2, compute_s=0.2, macs=10**9)
    assert abs(peer.srtt_s - 1.0) < 0.05
    assert peer.deadline_s(0) < 1.5
    assert peer.deadline_s(20 * 10**9) > 10


def test_a_deadline_stays_within_its_bounds() -> None:
    peer = Health()
    for _ in range(50):
        peer.answered(exchange_s=0.0001, compute_s=0.0, macs=1)
    assert peer.deadline_s(0) == health.MIN_DEADLINE_S
    assert peer.deadline_s(10**15) == health.MAX_DEADLINE_S


def test_a_holder_that_overstates_its_compute_time_does_not_get_a_negative_round_trip() -> None:
    peer = Health()
    peer.answered(exchange_s=0.1, compute_s=100.0, macs=10)
    assert peer.srtt_s == 0


def test_busy_blocks_for_as_long_as_the_peer_asked_and_is_no_failure() -> None:
    peer = Health()
    peer.failed(Busy("full", 2.0), now=10.0)
    assert not peer.is_usable(11.9)
    assert peer.is_usable(12.0)
    assert peer.failures == 0


def test_the_breaker_opens_after_three_failures_and_an_answer_closes_it() -> None:
    peer = Health()
    for _ in range(2):
        peer.failed(DeadlineExceeded(), now=0.0)
    assert peer.is_usable(0.0)
    peer.failed(PeerFailed(), now=0.0)
    assert not peer.is_usable(1.0)
    peer.answered(0.1, 0.05, 1)
    assert peer.failures == 0


def test_a_failure_makes_a_holder_dearer_than_its_replica() -> None:
    failed, other = Health(), Health()
    failed.failed(ChannelClosed(), now=0.0)
    assert failed.cost_s() > other.cost_s()


def test_garbage_blocks_at_once_and_for_long_a_drain_briefly() -> None:
    liar, leaver = Health(), Health()
    liar.failed(NonFinite(), now=0.0)
    leaver.failed(Draining(), now=0.0)
    assert not liar.is_usable(health.MISBEHAVIOUR_BACKOFF_S - 1)
    assert liar.is_banned(0.0)
    assert not leaver.is_banned(0.0)
    assert leaver.is_usable(health.FIRST_BACKOFF_S)


def test_each_failure_in_a_row_doubles_the_patience_so_that_a_slow_only_holder_is_not_given_up() -> None:
    peer = Health()
    before = peer.deadline_s(0)
    peer.failed(DeadlineExceeded(), now=0.0)
    peer.failed(DeadlineExceeded(), now=0.0)
    assert peer.deadline_s(0) == 4 * before
