"""The output parser tells the same whatever the pieces, and what DeepSeek-V3.1's format means.

Run: pytest tests/client/api/test_deepseek_output.py
"""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.client.api.deepseek_output import (
    CALL_BEGIN,
    CALL_END,
    CALL_SEP,
    CALLS_BEGIN,
    CALLS_END,
    THINK_BEGIN,
    THINK_END,
    CallArguments,
    CallBegins,
    Content,
    DeepSeekOutput,
    Part,
    Reasoning,
)

MARKERS = [THINK_BEGIN, THINK_END, CALLS_BEGIN, CALL_BEGIN, CALL_SEP, CALL_END, CALLS_END]
TWO_CALLS = (
    f'{CALLS_BEGIN}{CALL_BEGIN}weather{CALL_SEP}{{"city": "Oslo"}}{CALL_END}\n'
    f"{CALL_BEGIN}time{CALL_SEP}{{}}{CALL_END}{CALLS_END}"
)


def parsed(pieces: list[str], reasoning: bool = False, calls: bool = True) -> list[Part]:
    """All parts, neighbours of one kind joined."""
    output = DeepSeekOutput(begins_with_reasoning=reasoning, parses_calls=calls)
    told = [part for piece in pieces for part in output.push(piece)] + output.end()
    joined: list[Part] = []
    for part in told:
        last = joined[-1] if joined else None
        match last, part:
            case (Reasoning(before), Reasoning(text)):
                joined[-1] = Reasoning(before + text)
            case (Content(before), Content(text)):
                joined[-1] = Content(before + text)
            case (CallArguments(index, before), CallArguments(same, text)) if index == same:
                joined[-1] = CallArguments(index, before + text)
            case _:
                joined.append(part)
    return joined


PIECES = st.lists(
    st.one_of(
        st.sampled_from(MARKERS), st.sampled_from(["<", "<｜", "<think", "｜>", "\n", "name", '{"a": 1}']), st.text()
    ),
    max_size=12,
)


@given(pieces=PIECES, cuts=st.lists(st.integers(0, 400), max_size=30), reasoning=st.booleans(), calls=st.booleans())
def test_any_chunking_gives_the_same_parts(pieces: list[str], cuts: list[int], reasoning: bool, calls: bool) -> None:
    text = "".join(pieces)
    bounds = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    chunks = [text[start:end] for start, end in pairwise(bounds)]
    whole = parsed([text], reasoning, calls)
    assert parsed(chunks, reasoning, calls) == whole
    assert parsed(list(text), reasoning, calls) == whole


@given(text=st.text(), reasoning=st.booleans())
def test_text_without_markers_is_told_whole(text: str, reasoning: bool) -> None:
    kind = Reasoning if reasoning else Content
    assert parsed([text], reasoning) == ([kind(text)] if text else [])


def test_reasoning_text_and_calls_are_told_apart() -> None:
    assert parsed([f"Let me see.{THINK_END}I will look.{TWO_CALLS}"], reasoning=True) == [
        Reasoning("Let me see."),
        Content("I will look."),
        CallBegins(0, "weather"),
        CallArguments(0, '{"city": "Oslo"}'),
        CallBegins(1, "time"),
        CallArguments(1, "{}"),
    ]


def test_a_model_may_begin_to_think_by_itself() -> None:
    assert parsed([f"{THINK_BEGIN}hm{THINK_END}4"]) == [Reasoning("hm"), Content("4")]
    assert parsed([f"4{THINK_BEGIN}hm"]) == [Content(f"4{THINK_BEGIN}hm")]


def test_without_tools_their_markers_are_text() -> None:
    assert parsed([TWO_CALLS], calls=False) == [Content(TWO_CALLS)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{CALLS_BEGIN}{CALL_BEGIN}weat", [Content(f"{CALL_BEGIN}weat")]),
        (f'{CALLS_BEGIN}{CALL_BEGIN}weather{CALL_SEP}{{"ci', [CallBegins(0, "weather"), CallArguments(0, '{"ci')]),
        ("A < B and <｜tool", [Content("A < B and <｜tool")]),
        ("<thi", [Content("<thi")]),
    ],
)
def test_an_answer_that_breaks_off_keeps_what_it_said(text: str, told: list[Part]) -> None:
    assert parsed([text]) == told


def test_text_is_not_held_back_without_need() -> None:
    output = DeepSeekOutput(begins_with_reasoning=False, parses_calls=True)
    assert output.push("Hello") == [Content("Hello")]
    assert output.push(" <") == [Content(" ")]
    assert output.push("b") == [Content("<b")]
