"""What a swarm's replica counts mean, and what one more node would mend."""

from hypothesis import given
from hypothesis import strategies as st

from shoal.client.chat.coverage import NextNode, next_node, summarize
from shoal.protocol.ids import ExpertId, LayerId


def coverage(*layers: list[int]) -> dict[LayerId, dict[ExpertId, int]]:
    return {LayerId(3 + i): {ExpertId(e): n for e, n in enumerate(counts)} for i, counts in enumerate(layers)}


def test_a_gap_is_never_rounded_away() -> None:
    almost = coverage([1] * 9_999 + [0])
    assert summarize(almost).percent == 99.9
    assert not summarize(almost).is_complete
    assert summarize(coverage([1, 1])).percent == 100.0


def test_the_worst_layer_has_most_missing_experts_then_most_single_ones() -> None:
    assert summarize(coverage([1, 2], [0, 2], [0, 0])).worst_layer == 5
    assert summarize(coverage([2, 2], [1, 2], [1, 1])).worst_layer == 5
    assert summarize(coverage([3, 2], [2, 2])).worst_layer == 4
    assert summarize({}).worst_layer is None


def test_one_more_node_closes_the_worst_gap() -> None:
    assert next_node(coverage([1, 1, 1], [0, 0, 2]), 4_000) == NextNode(LayerId(4), 8_000, 2, True)


def test_without_a_gap_it_gives_single_experts_a_second_holder() -> None:
    assert next_node(coverage([2, 2, 2], [1, 2, 2]), 4_000) == NextNode(LayerId(4), 4_000, 1, False)


def test_a_swarm_with_two_holders_of_everything_needs_nothing() -> None:
    assert next_node(coverage([2, 3], [2, 2]), 4_000) is None
    assert next_node({}, 4_000) is None


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=8), min_size=1, max_size=6))
def test_the_contribution_is_just_what_is_missing(layers: list[list[int]]) -> None:
    mend = next_node(coverage(*layers), 10)
    lowest = min(min(counts) for counts in layers)
    assert (mend is None) == (lowest >= 2)
    if mend is not None:
        counts = layers[mend.layer - 3]
        assert mend.closes_gap == (lowest == 0)
        assert mend.size_bytes == 10 * mend.num_experts == 10 * counts.count(0 if mend.closes_gap else 1) > 0
