"""Token buckets: a peer that takes more than its share waits for as long as it is over, and nobody else does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.node.serving.shares import Shares
from shoal.protocol.ids import PeerId

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_burst_is_free_and_what_is_over_it_is_waited_for() -> None:
    clock = Clock()
    shares = Shares(1.0, clock)
    shares.spend(A, 1.0, 0.0)
    assert shares.wait_s(A) == 0
    shares.spend(A, 0.5, 0.0)
    assert shares.wait_s(A) == pytest.approx(0.5)
    clock.now_s += 0.5
    assert shares.wait_s(A) == pytest.approx(0.0)


def test_bytes_count_as_computing_does() -> None:
    shares = Shares(1.0, Clock())
    shares.spend(A, 0.0, 1.25)
    assert shares.wait_s(A) == pytest.approx(0.25)


def test_two_peers_earn_half_each() -> None:
    clock = Clock()
    shares = Shares(1.0, clock)
    shares.spend(A, 1.4, 0.0)
    shares.spend(B, 0.1, 0.0)
    assert shares.wait_s(A) == pytest.approx(0.8)
    clock.now_s += 0.2  # not yet full, so B still counts
    assert shares.wait_s(A) == pytest.approx(0.6)
    assert shares.wait_s(B) == 0


def test_a_debt_is_never_more_than_a_burst() -> None:
    shares = Shares(2.0, Clock())
    shares.spend(A, 1000.0, 1000.0)
    assert shares.wait_s(A) == pytest.approx(2.0)


def test_who_has_not_come_for_a_while_is_forgotten_and_counts_no_more() -> None:
    clock = Clock()
    shares = Shares(1.0, clock)
    for peer in (A, B, C):
        shares.spend(peer, 0.5, 0.0)
    clock.now_s += 10
    assert shares.wait_s(A) == 0
    assert shares.num_peers == 0


@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.floats(0, 0.2), st.floats(0, 0.1)), max_size=300))
def test_whoever_waits_as_told_gets_no_more_than_time_and_bursts_allow(
    calls: list[tuple[PeerId, float, float]],
) -> None:
    clock = Clock()
    shares = Shares(0.5, clock)
    taken = dict.fromkeys((A, B, C), 0.0)
    for peer, cost_s, pause_s in calls:
        clock.now_s += pause_s
        if shares.wait_s(peer) == 0:
            shares.spend(peer, cost_s, 0.0)
            taken[peer] += cost_s
    # each may have one burst, one debt of a last request, and what the whole node did in this time
    assert all(each <= 0.5 + 0.2 + clock.now_s + 1e-6 for each in taken.values())
