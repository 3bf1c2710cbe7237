"""How many passes should follow one another, when to try drafts again, and how long a run of right ones gets.

Run: pytest tests/client/speculation/test_depth.py
"""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.client.speculation.acceptance import RUN_PRIOR, RunChance
from shoal.client.speculation.depth import MAX_DEPTH, Pursued, best_depth, tokens_per_s
from shoal.client.speculation.trials import FIRST_REST, LAST_REST, PAYS_AFTER, TRIAL_PASSES, Trials

FAR = Pursued(num_rows=7, pass_s=0.090, followed_s=0.095, enter_s=0.008, chance=0.9)
"""Four round trips of 20 ms, and a text that is mostly guessed right."""


def test_passes_follow_where_guesses_are_right_for_longer_than_a_pass_is_wide() -> None:
    assert best_depth(FAR) > 1
    assert best_depth(replace(FAR, chance=0.99)) == MAX_DEPTH


def test_nothing_follows_where_guesses_are_soon_wrong() -> None:
    assert best_depth(replace(FAR, chance=0.5)) == best_depth(replace(FAR, chance=0.0)) == 1


def test_nothing_follows_where_a_pass_is_arithmetic_and_no_wait() -> None:
    """At no round trip the pass behind takes from the one ahead what it computes itself."""
    assert best_depth(Pursued(num_rows=3, pass_s=0.014, followed_s=0.024, enter_s=0.010, chance=0.8)) == 1


def test_another_pass_must_be_worth_its_traffic() -> None:
    """A third one would be right once in twenty times, and bring 3 %."""
    assert best_depth(replace(FAR, chance=0.8)) == 2
    assert tokens_per_s(replace(FAR, chance=0.8), 3) > tokens_per_s(replace(FAR, chance=0.8), 2)


@given(
    rows=st.integers(1, 16),
    pass_s=st.floats(1e-3, 1),
    more=st.floats(1, 3),
    enter=st.floats(0, 1),
    chance=st.floats(0, 1),
)
def test_the_choice_is_never_expected_to_be_slower_than_nothing_that_follows(
    rows: int, pass_s: float, more: float, enter: float, chance: float
) -> None:
    pursued = Pursued(rows, pass_s, pass_s * more, pass_s * enter, chance)
    depth = best_depth(pursued)
    assert 1 <= depth <= MAX_DEPTH
    assert tokens_per_s(pursued, depth) >= tokens_per_s(pursued, 1)


def test_a_run_has_the_tokens_of_its_passes() -> None:
    """Sure guesses, two rows a pass, an entry as soon as there is room: as many passes at a time as the depth."""
    sure = Pursued(num_rows=2, pass_s=1.0, followed_s=1.0, enter_s=0.0, chance=1.0)
    assert tokens_per_s(sure, 1) == pytest.approx(1.98)
    assert tokens_per_s(sure, 2) / tokens_per_s(sure, 1) == pytest.approx(2, rel=0.2)


def rest_of(trials: Trials) -> int:
    """Passes without drafts until the next trial."""
    num_passes = 0
    while trials.is_resting:
        trials.passed(has_drafted=False)
        num_passes += 1
    return num_passes


def test_trials_in_vain_become_rare_and_stay_possible() -> None:
    trials, rests = Trials(), []
    assert not trials.is_resting
    for _ in range(8):
        trials.in_vain()
        rests.append(rest_of(trials))
        for _ in range(TRIAL_PASSES):
            assert trials.is_trying
            trials.passed(has_drafted=True)
        assert not trials.is_trying
    assert rests == [min(FIRST_REST * 2**i, LAST_REST) for i in range(8)]


def test_drafts_that_have_paid_for_long_are_missed_for_short() -> None:
    trials = Trials()
    for _ in range(3):
        trials.in_vain()
        rest_of(trials)
    for _ in range(PAYS_AFTER):
        trials.passed(has_drafted=True)
    trials.in_vain()
    assert rest_of(trials) == FIRST_REST


def test_a_run_that_goes_on_is_expected_to_and_one_that_ends_is_not() -> None:
    chance = RunChance()
    assert chance.value == pytest.approx(RUN_PRIOR)
    for _ in range(20):
        chance.add(20, is_whole=True)
    assert chance.value > 0.95
    for _ in range(200):
        chance.add(1, is_whole=False)
    assert chance.value == pytest.approx(0.5, abs=0.01)
