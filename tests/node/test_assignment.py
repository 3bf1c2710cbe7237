"""What a node holds: a user's words are read exactly, and rarity decides where they are silent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.experts.family import ExpertSpec, GroupReduce, ModelSpec, RouterSpec, Score
from shoal.node.assignment import assign, parse_holding
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.ids import ExpertId, LayerId, PeerId

ROUTER = RouterSpec(Score.SIGMOID, True, 16, 4, 4, 2, GroupReduce.TOP2_SUM, True, 2.5)
SPEC = ModelSpec("deepseek_v3", ROUTER, ExpertSpec(64, 32), (LayerId(1), LayerId(2), LayerId(3)), 3)
PEER = PeerId("12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("all", {1: range(16), 2: range(16), 3: range(16)}),
        ("0-3", {1: range(4), 2: range(4), 3: range(4)}),
        ("2:5", {2: [5]}),
        ("1:0-1,1:1-2,3:15", {1: [0, 1, 2], 3: [15]}),
        ("1-2:7", {1: [7], 2: [7]}),
    ],
)
def test_words_name_layers_and_experts(words: str, expected: dict[int, list[int]]) -> None:
    assert parse_holding(words, SPEC) == {layer: tuple(experts) for layer, experts in expected.items()}


@pytest.mark.parametrize("words", ["", "x", "16", "0:1", "4:1", "3-1", "1:2:3", "-1", "0-99", "1:,2", "99999999999"])
def test_words_outside_the_model_are_refused(words: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_holding(words, SPEC)


def test_the_rarest_groups_are_taken_first_and_whole() -> None:
    counts = {(layer, ExpertId(expert)): 2 for layer in SPEC.moe_layers for expert in range(16)}
    for expert in range(4, 8):
        counts[LayerId(2), ExpertId(expert)] = 0
    assert assign(SPEC, counts, 4, PEER) == {2: (4, 5, 6, 7)}


def test_two_nodes_that_see_the_same_swarm_choose_differently() -> None:
    other = PeerId("12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X")
    assert assign(SPEC, {}, 4, PEER) != assign(SPEC, {}, 4, other)


@given(st.integers(0, 60))
def test_a_node_never_takes_more_than_its_budget_nor_an_expert_twice(budget: int) -> None:
    held = [(layer, expert) for layer, experts in assign(SPEC, {}, budget, PEER).items() for expert in experts]
    assert len(held) == len(set(held)) == min(budget, 48)


@given(st.integers(1, 8))
def test_joining_one_after_another_covers_the_model_evenly(per_node: int) -> None:
    counts: dict[tuple[LayerId, ExpertId], int] = {}
    for i in range(12):
        for layer, experts in assign(SPEC, counts, 4 * per_node, PeerId(f"node {i}")).items():
            for expert in experts:
                counts[layer, expert] = counts.get((layer, expert), 0) + 1
    full = [counts.get((layer, ExpertId(expert)), 0) for layer in SPEC.moe_layers for expert in range(16)]
    assert max(full) - min(full) <= 1
