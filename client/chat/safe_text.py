"""Text from a model or a peer, made safe for a terminal: no escape sequences, nothing that hides or reorders. Pure.

A terminal obeys what it is sent: a model that answers with ESC can set the title, write the clipboard or overwrite what
was said before. Everything that others wrote passes here before it is shown.
"""

import unicodedata

_KEPT = "\n\t"

_BIDI_OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Embeddings, overrides and isolates: they make a line read otherwise than it is (CVE-2021-42574)."""


def printable(text: str) -> str:
    """The text without control characters (line feed and tab stay) and without overrides of its direction."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(character for character in text if _is_kept(character))


def _is_kept(character: str) -> bool:
    return character in _KEPT or (unicodedata.category(character) != "Cc" and character not in _BIDI_OVERRIDES)
