"""A stop string ends the text wherever tokens are cut.

Run: pytest tests/client/text/test_stop_strings.py
"""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from shoal.client.text.stop_strings import StopStrings

texts = st.text(alphabet="ab\n", max_size=24)
stops = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=4)


def run(stop: list[str], pieces: list[str]) -> tuple[str, bool]:
    matcher, shown = StopStrings(stop), ""
    for piece in pieces:
        matched = matcher.push(piece)
        shown += matched.text
        if matched.is_stopped:
            return shown, True
    return shown + matcher.flush(), False


def cut(text: str, places: list[int]) -> list[str]:
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[begin:end] for begin, end in pairwise(bounds)]


@given(texts, stops, st.lists(st.integers(0, 100), max_size=6))
def test_any_cutting_of_the_text_gives_the_same_answer(text: str, stop: list[str], places: list[int]) -> None:
    assert run(stop, cut(text, places)) == run(stop, [text])


@given(texts, stops)
def test_what_is_shown_is_the_text_before_the_stop_string_that_was_complete_first(text: str, stop: list[str]) -> None:
    ends = [end for end in range(1, len(text) + 1) if any(text[:end].endswith(one) for one in stop)]
    if not ends:
        assert run(stop, [text]) == (text, False)
        return
    longest = max(len(one) for one in stop if text[: ends[0]].endswith(one))
    assert run(stop, [text]) == (text[: ends[0] - longest], True)


def test_nothing_is_held_back_that_cannot_begin_a_stop_string() -> None:
    matcher = StopStrings(["\n\nUser"])
    assert matcher.push("line\n").text == "line"
    assert matcher.push("next").text == "\nnext"


def test_without_stop_strings_text_passes_through() -> None:
    assert StopStrings([]).push("anything").text == "anything"
