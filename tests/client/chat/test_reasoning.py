"""Thoughts apart from answers, however the text is cut."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.client.chat.reasoning import ReasoningSplitter, Split


def split(pieces: Sequence[str], is_thinking: bool = False) -> Split:
    splitter = ReasoningSplitter(is_thinking)
    parts = [*(splitter.push(piece) for piece in pieces), splitter.end()]
    return Split("".join(part.text for part in parts), "".join(part.reasoning for part in parts))


@pytest.mark.parametrize(
    ("text", "is_thinking", "expected"),
    [
        ("plain", False, Split("plain")),
        ("<think>why</think>because", False, Split("because", "why")),
        ("  \n<think>why</think>because", False, Split("because", "why")),
        ("why</think>because", True, Split("because", "why")),
        ("write <think> like this", False, Split("write <think> like this")),
        ("why</think>write </think> so", True, Split("write </think> so", "why")),
        ("cut off <", True, Split("", "cut off <")),
        ("<thin", False, Split("<thin")),
    ],
)
def test_a_thought_stands_before_the_answer(text: str, is_thinking: bool, expected: Split) -> None:
    assert split([text], is_thinking) == expected


@given(st.lists(st.sampled_from(["<think>", "</think>", "<", "thi", "a", " ", "\n", "</", "é"])), st.booleans())
def test_any_cutting_of_the_same_text_gives_the_same_split(pieces: list[str], is_thinking: bool) -> None:
    text = "".join(pieces)
    assert split(pieces, is_thinking) == split([text], is_thinking) == split(list(text), is_thinking)
