"""What a node holds: a user's words are read exactly."""

import pytest

from shoal.experts.family import ExpertSpec, GroupReduce, ModelSpec, RouterSpec, Score
from shoal.node.holdings.assignment import parse_holding
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.ids import LayerId

ROUTER = RouterSpec(Score.SIGMOID, True, 16, 4, 4, 2, GroupReduce.TOP2_SUM, True, 2.5)
SPEC = ModelSpec("deepseek_v3", ROUTER, ExpertSpec(64, 32), (LayerId(1), LayerId(2), LayerId(3)), 3)


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
