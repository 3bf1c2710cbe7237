"""Who dies in a simulation: never the last holder of an expert."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol.errors import InvalidRequest
from shoal.simulations.churn import count_of, pause_until_next_s, victims


@given(st.lists(st.sampled_from(["0-7", "8-15", "16-31"]), min_size=1, max_size=30), st.integers(0, 30), st.integers())
def test_victims_leave_a_holder_of_everything_or_are_refused(parts: list[str], count: int, seed: int) -> None:
    possible = len(parts) - len(set(parts))
    if count > possible:
        with pytest.raises(InvalidRequest, match=f"at most {possible}"):
            victims(parts, count, random.Random(seed))
        return
    first = seed % len(parts)
    dead = victims(parts, count, random.Random(seed), first)
    assert not count or first in dead or parts.count(parts[first]) == 1
    assert len(set(dead)) == count
    assert set(Counter(part for position, part in enumerate(parts) if position not in dead)) == set(parts)


def test_the_same_seed_kills_the_same_nodes() -> None:
    parts = ["a", "b", "c"] * 4
    assert victims(parts, 4, random.Random(7)) == victims(parts, 4, random.Random(7))


@pytest.mark.parametrize(("words", "count"), [("0", 0), ("2", 2), ("0.3", 2), ("30%", 2), ("0.5", 3), ("6", 6)])
def test_a_count_or_a_share_of_six_nodes(words: str, count: int) -> None:
    assert count_of(words, 6) == count


@pytest.mark.parametrize("words", ["", "many", "-1", "1.5", "nan", "inf", "100%", "200%"])
def test_other_words_are_refused(words: str) -> None:
    with pytest.raises(InvalidRequest):
        count_of(words, 6)


def test_a_churn_has_the_deaths_per_node_and_hour_that_were_asked_for() -> None:
    chance = random.Random(3)
    pauses = [pause_until_next_s(2.0, 10, chance) for _ in range(10_000)]
    assert sum(pauses) / len(pauses) == pytest.approx(180, rel=0.05)
