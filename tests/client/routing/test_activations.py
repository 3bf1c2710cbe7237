"""The choice of a format: exact by default, never one that a holder has not named, by the link if asked to."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.client.routing.activations import MAX_TOKEN_S, Activations, WireFormat, exact_format, wire_format
from shoal.client.routing.link_rate import MIN_EXCHANGES, NUM_RECENT, LinkRate
from shoal.protocol.dtypes import TAKEN
from shoal.protocol.messages import DType, Rounding

V3_HIDDEN = 7168
RATES = st.none() | st.floats(1, 1e12) | st.just(math.inf)
ROUNDINGS = st.sampled_from(Rounding)
SETS = st.sets(st.sampled_from(DType))


def both(dtype: DType) -> WireFormat:
    return WireFormat(dtype, dtype)


@given(ROUNDINGS, SETS, RATES)
def test_exact_is_exact_whatever_the_link_and_the_holder(rounding, taken, rate):
    chosen = wire_format(Activations.EXACT, rounding, V3_HIDDEN, taken, rate)
    assert chosen == exact_format(rounding)
    assert chosen.down is DType.F32


@given(st.sampled_from(Activations), ROUNDINGS, SETS, RATES)
def test_no_holder_gets_a_format_that_it_has_not_named(wanted, rounding, taken, rate):
    chosen = wire_format(wanted, rounding, V3_HIDDEN, taken, rate)
    assert chosen == exact_format(rounding) or {chosen.up, chosen.down} <= taken


@pytest.mark.parametrize("name", ["bf16", "fp8", "int8"])
def test_what_the_user_names_is_used_both_ways(name):
    dtype = DType[name.upper()]
    assert wire_format(Activations(name), Rounding.FP32, V3_HIDDEN, TAKEN, None) == both(dtype)


@pytest.mark.parametrize(
    ("mbit_per_s", "expected"),
    [
        (None, exact_format(Rounding.BF16)),
        (1000, exact_format(Rounding.BF16)),
        (345, exact_format(Rounding.BF16)),
        (343, both(DType.BF16)),
        (230, both(DType.BF16)),
        (229, both(DType.INT8)),
        (1, both(DType.INT8)),
    ],
)
def test_auto_sends_fewer_bytes_over_slower_links(mbit_per_s, expected):
    rate = None if mbit_per_s is None else mbit_per_s * 1e6 / 8
    assert wire_format(Activations.AUTO, Rounding.BF16, V3_HIDDEN, TAKEN, rate) == expected


@given(ROUNDINGS, st.integers(1, 16_384), SETS, st.floats(1, 1e12))
def test_auto_takes_the_first_that_fits_a_millisecond_and_else_the_last(rounding, hidden, taken, rate):
    chosen = wire_format(Activations.AUTO, rounding, hidden, taken, rate)
    ladder = [exact_format(rounding), *(both(each) for each in (DType.BF16, DType.INT8) if each in taken)]
    place = ladder.index(chosen)
    budget = MAX_TOKEN_S * rate
    assert all(each.token_bytes(hidden) > budget for each in ladder[:place])
    assert chosen.token_bytes(hidden) <= budget or place == len(ladder) - 1


def test_a_link_is_unknown_until_some_exchanges_have_crossed_it():
    link = LinkRate()
    link.pinged(0.020)
    for _ in range(MIN_EXCHANGES - 1):
        link.carried(43_000, 0.029, 0.005)
        assert link.bytes_per_s is None
    link.carried(43_000, 0.029, 0.005)
    assert link.bytes_per_s == pytest.approx(43_000 / 0.004)


def test_a_link_without_a_ping_stays_unknown():
    link = LinkRate()
    for _ in range(2 * MIN_EXCHANGES):
        link.carried(43_000, 0.024, 0.0)
    assert link.bytes_per_s is None


@pytest.mark.parametrize("held_s", [0.0, 0.010, 1000.0])
def test_a_link_on_which_bytes_cost_nothing_or_a_holder_says_so_is_infinite(held_s):
    link = LinkRate()
    link.pinged(0.020)
    for _ in range(MIN_EXCHANGES):
        link.carried(43_000, 0.020 + min(held_s, 0.010), held_s)
    assert link.bytes_per_s == math.inf
    assert link.ping_s == 0.020


def test_the_shortest_ping_counts_and_a_whole_exchange_may_be_shorter():
    link = LinkRate()
    for rtt_s in (0.050, 0.020, 0.030):
        link.pinged(rtt_s)
    assert link.ping_s == 0.020
    link.carried(100, 0.015, 0.014)
    assert link.ping_s == 0.015


def test_exchanges_that_a_busy_machine_held_up_do_not_slow_a_link():
    link = LinkRate()
    link.pinged(0.005)
    for place in range(NUM_RECENT):
        link.carried(2000, 0.0052 if place == 3 else 0.080, 0.0)
    assert link.bytes_per_s == pytest.approx(2000 / 0.0002)


def test_a_link_that_became_slow_is_slow_when_its_fast_exchanges_are_long_past():
    link = LinkRate()
    link.pinged(0.005)
    for _ in range(NUM_RECENT):
        link.carried(2000, 0.0052, 0.0)
    for _ in range(NUM_RECENT):
        link.carried(2000, 0.015, 0.0)
    assert link.bytes_per_s == pytest.approx(2000 / 0.010)
