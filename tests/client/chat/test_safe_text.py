"""Nothing that others wrote commands the terminal."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.client.chat.safe_text import printable


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("\x1b]0;owned\x07title", "]0;ownedtitle"),
        ("\x1b[2Jgone", "[2Jgone"),
        ("\x9b31mred", "31mred"),
        ("over\rwritten\b", "overwritten"),
        ("abc\u202ecba", "abccba"),
        ("line\n\ttab", "line\n\ttab"),
        ("héllo 🐟 שלום", "héllo 🐟 שלום"),
    ],
)
def test_escape_sequences_and_hidden_order_are_taken_out(dirty: str, clean: str) -> None:
    assert printable(dirty) == clean


@given(st.text())
def test_what_is_left_has_no_controls_but_line_feed_and_tab(text: str) -> None:
    assert all(each in "\n\t" or unicodedata.category(each) != "Cc" for each in printable(text))
    assert printable(printable(text)) == printable(text)
