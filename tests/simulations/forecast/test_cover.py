"""The exact search that the greedy choice of holders is held against finds the fewest.

Run: pytest tests/simulations/forecast/test_cover.py
"""

import numpy as np
import pytest

from shoal.client.routing.choose import choose
from shoal.protocol.ids import ExpertId, PeerId
from shoal.simulations.forecast.cover import chosen_by_nodes, compare, fewest, router_of

E = [ExpertId(number) for number in range(6)]


def test_it_finds_two_where_greedy_takes_three() -> None:
    """Greedy begins with the middle, which has most, and needs both sides besides."""
    held = {
        PeerId("left"): frozenset(E[:3]),
        PeerId("middle"): frozenset(E[1:5]),
        PeerId("right"): frozenset(E[3:]),
    }
    assert len(choose(E, held, dict.fromkeys(held, 1.0)).shares) == 3
    assert fewest(E, held) == 2
    assert fewest([], held) == 0


def test_what_nobody_holds_is_an_error() -> None:
    with pytest.raises(ValueError, match="nobody holds"):
        fewest(E[:1], {PeerId("a"): frozenset(E[1:])})


def test_nodes_that_choose_for_themselves_leave_greedy_nothing_to_save() -> None:
    rng, router = np.random.default_rng(0), router_of(32, 4)
    found = compare(chosen_by_nodes(router, 4, 2, 4, 0.0, rng), router, rng)
    assert found.too_many_share == found.most_too_many == 0
    assert found.greedy == found.fewest >= 1
