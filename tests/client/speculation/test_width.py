"""How many drafts pay: the choice, and what it is told of passes and of drafts.

Run: pytest tests/client/speculation/test_width.py
"""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.client.speculation.acceptance import PRIOR, Acceptance
from shoal.client.speculation.pass_times import ENOUGH, STALE_AFTER, PassTimes
from shoal.client.speculation.width import MARGIN, Measured, best_width, tokens_per_s

ROOM = 256
GOOD = (0.8, 0.6, 0.45, 0.3)
FAR = Measured(1, lambda rows: 0.080 + 0.001 * rows, lambda width: 0.002 * width, GOOD)
"""Four round trips of 20 ms, rows cheap."""


def test_drafts_pay_where_a_pass_is_mostly_waiting() -> None:
    assert best_width(FAR, ROOM) == 4


def test_nothing_is_drafted_where_rows_are_what_a_pass_is_made_of() -> None:
    assert best_width(replace(FAR, pass_s=lambda rows: 0.010 * rows), ROOM) == 0


def test_nothing_is_drafted_where_drafts_take_as_long_as_passes() -> None:
    assert best_width(replace(FAR, draft_s=lambda width: 0.080 * width), ROOM) == 0


def test_nothing_is_drafted_where_drafts_are_never_right() -> None:
    assert best_width(replace(FAR, acceptance=(0.0, 0.0)), ROOM) == 0


def test_a_gain_within_the_noise_is_none() -> None:
    assert best_width(replace(FAR, acceptance=(MARGIN - 1.02,), draft_s=lambda width: 0.0), ROOM) == 0


def test_streams_share_the_rows_of_a_pass() -> None:
    assert best_width(replace(FAR, num_streams=100), ROOM) == 1
    assert best_width(replace(FAR, num_streams=200), ROOM) == 0


@given(
    base=st.floats(0, 1),
    row=st.floats(1e-6, 0.1),
    draft=st.floats(0, 0.1),
    chances=st.lists(st.floats(0, 1), min_size=1, max_size=8),
    num_streams=st.integers(1, 300),
)
def test_the_choice_is_never_expected_to_be_slower_than_no_drafts(
    base: float, row: float, draft: float, chances: list[float], num_streams: int
) -> None:
    falling = tuple(min(chances[: i + 1]) for i in range(len(chances)))
    measured = Measured(num_streams, lambda rows: base + row * rows, lambda width: draft * width, falling)
    width = best_width(measured, ROOM)
    assert num_streams * (1 + width) <= max(ROOM, num_streams)
    assert tokens_per_s(measured, width) >= tokens_per_s(measured, 0)


def times_of(*samples: tuple[int, float]) -> PassTimes:
    times = PassTimes()
    for rows, seconds in samples:
        for _ in range(ENOUGH):
            times.add(rows, seconds)
    return times


def test_a_number_of_rows_that_was_measured_is_its_median() -> None:
    times = times_of((4, 0.1))
    times.add(4, 9.0)  # one pass met a failover
    assert times.estimate(4) == pytest.approx(0.1)


def test_others_lie_on_the_line_through_what_was_measured() -> None:
    assert times_of((1, 0.1), (5, 0.3)).estimate(3) == pytest.approx(0.2)
    assert times_of((1, 0.1), (5, 0.3)).estimate(7) == pytest.approx(0.4)


def test_more_rows_are_never_believed_to_be_faster() -> None:
    assert times_of((1, 0.3), (5, 0.1)).estimate(8) == pytest.approx(0.1)


def test_one_accident_is_not_believed() -> None:
    times = times_of((1, 0.1))
    times.add(4, 9.0)
    assert times.estimate(4) < 0.2


def test_what_passes_took_long_ago_is_forgotten() -> None:
    times = times_of((4, 9.0))
    for _ in range(STALE_AFTER):
        times.add(1, 0.1)
    assert times.estimate(4) < 0.2
    assert times.has_baseline(1)
    assert not times_of((4, 0.1)).has_baseline(3)


def test_chances_follow_the_drafts_and_the_prior_is_unlearned_within_a_few_passes() -> None:
    hopeful = Acceptance(3)
    for _ in range(4):
        hopeful.add(3, 0)
    assert max(hopeful.chances) < PRIOR / 2
    acceptance = Acceptance(3)
    for _ in range(1000):
        acceptance.add(2, 1)
    first, second, third = acceptance.chances
    assert (first, second) == (pytest.approx(1.0), pytest.approx(0.0))
    assert third <= second  # never rising
