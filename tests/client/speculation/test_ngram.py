"""Drafts from the text itself.

Run: pytest tests/client/speculation/test_ngram.py
"""

import asyncio
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from shoal.client.speculation.drafter import Wish
from shoal.client.speculation.ngram import LOOKBACK, NgramDrafter, lookup


def test_what_followed_the_same_words_before_is_drafted() -> None:
    assert lookup([1, 2, 3, 4, 5, 9, 1, 2, 3], width=2) == (4, 5)


def test_the_longest_match_wins_and_the_latest_of_equally_long_ones() -> None:
    assert lookup([7, 1, 2, 3, 40, 1, 2, 3, 50, 7, 1, 2, 3], width=1) == (40,)
    assert lookup([1, 2, 3, 40, 1, 2, 3, 50, 9, 1, 2, 3], width=1) == (50,)


def test_a_loop_goes_round() -> None:
    assert lookup([8, 5, 6, 5, 6, 5, 6], width=5) == (5, 6, 5, 6, 5)
    assert lookup([5, 5, 5, 5], width=3) == (5, 5, 5)


def test_shorter_matches_than_asked_for_are_none() -> None:
    assert lookup([1, 2, 9, 1, 2], width=3) == ()
    assert lookup([1, 2, 9, 1, 2], width=3, min_match=2) == (9, 1, 2)
    assert lookup([1], width=3) == lookup([1, 2], width=3) == ()


def test_what_lies_too_far_back_is_not_searched() -> None:
    ids = [1, 2, 3, 4] + [0] * 3 + list(range(10, 10 + LOOKBACK)) + [1, 2, 3]
    assert lookup(ids, width=1) == ()


def test_what_is_being_verified_is_part_of_the_text_that_is_searched() -> None:
    wish = Wish(object(), [1, 2, 3, 4, 5, 9, 1], width=2, guessed=(2, 3))
    assert asyncio.run(NgramDrafter().draft([wish])) == [(4, 5)]
    assert asyncio.run(NgramDrafter().draft([replace(wish, guessed=())])) == [()]


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 6), st.integers(1, 4))
def test_drafts_continue_a_place_where_the_last_words_stood(ids: list[int], width: int, min_match: int) -> None:
    drafts = lookup(ids, width, min_match)
    assert len(drafts) in (0, width)
    if drafts:
        tail = ids[-min_match:]
        assert any(ids[i : i + min_match + 1] == [*tail, drafts[0]] for i in range(len(ids) - min_match))
