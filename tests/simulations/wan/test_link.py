"""What a network does to packets, as arithmetic."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol.errors import InvalidRequest
from shoal.simulations.wan.link import MAX_QUEUE_S, Fabric, Link


def never() -> float:
    return 0.999999


def test_a_packet_takes_half_of_the_mean_round_trip_of_both_links() -> None:
    fabric = Fabric([Link(20), Link(60)], never)
    assert fabric.arrival(0, 1, 1500, 5.0) == pytest.approx(5.0 + 0.020)
    assert fabric.arrival(1, 0, 1500, 5.0) == pytest.approx(5.0 + 0.020)


def test_a_cut_link_passes_nothing_either_way_and_passes_again_when_it_is_mended() -> None:
    fabric = Fabric([Link(), Link(is_cut=True), Link()], never)
    assert fabric.arrival(0, 1, 100, 0.0) is None
    assert fabric.arrival(1, 0, 100, 0.0) is None
    assert fabric.arrival(0, 2, 100, 0.0) == 0.0
    fabric.set_link(1, Link())
    assert fabric.arrival(0, 1, 100, 0.0) == 0.0


def test_the_worse_loss_of_two_links_counts_and_is_the_share_that_was_asked_for() -> None:
    chance = random.Random(1)
    fabric = Fabric([Link(loss=0.05), Link(loss=0.01)], chance.random)
    num_lost = sum(fabric.arrival(0, 1, 100, 0.0) is None for _ in range(20_000))
    assert num_lost / 20_000 == pytest.approx(0.05, rel=0.1)


def test_a_paced_link_passes_its_rate_and_each_direction_has_its_own() -> None:
    fabric = Fabric([Link(rate_bytes_per_s=1000), Link()], never)
    assert fabric.arrival(0, 1, 500, 0.0) == 0.5
    assert fabric.arrival(0, 1, 500, 0.0) == 1.0
    assert fabric.arrival(1, 0, 500, 0.0) == 0.5
    assert fabric.arrival(0, 1, 500, 7.0) == 7.5


def test_a_full_queue_drops_and_drains() -> None:
    fabric = Fabric([Link(rate_bytes_per_s=1e6), Link()], never)
    arrivals = [fabric.arrival(0, 1, 10_000, 0.0) for _ in range(100)]
    passed = [arrival for arrival in arrivals if arrival is not None]
    assert len(passed) in (MAX_QUEUE_S * 100, MAX_QUEUE_S * 100 + 1)  # the last by a rounding
    assert arrivals[-1] is None
    assert fabric.arrival(0, 1, 10_000, passed[-1]) == pytest.approx(passed[-1] + 0.01)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(20, 1500)), min_size=2, max_size=50))
def test_packets_of_a_steady_path_never_overtake_each_other(sent: list[tuple[float, int]]) -> None:
    fabric = Fabric([Link(10, rate_bytes_per_s=1e6), Link(30, rate_bytes_per_s=2e6)], never)
    arrivals = [fabric.arrival(0, 1, size, at) for at, size in sorted(sent)]
    passed = [arrival for arrival in arrivals if arrival is not None]
    assert passed == sorted(passed)


@pytest.mark.parametrize("bad", [{"rtt_ms": -1}, {"rtt_ms": float("nan")}, {"loss": 1.0}, {"rate_bytes_per_s": 0}])
def test_a_link_that_can_not_be_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest):
        Link(**bad)  # type: ignore[arg-type]
