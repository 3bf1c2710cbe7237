"""One language's messages, from the `.po` file that translators edit: read when the first word is shown.

No build step: a `.po` of some hundred messages is read in milliseconds, and English, which needs none, reads nothing.
Plural rules are evaluated by the standard library's gettext, which gets the catalogue in its own binary form
(https://www.gnu.org/software/gettext/manual/html_node/MO-Files.html).
"""

import ast
import gettext
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

MAGIC = 0x950412DE
HEADER_BYTES = 28


@dataclass(frozen=True, slots=True)
class Entry:
    """One message. plural: empty if there is no number in it. forms: translations, one per plural form."""

    message: str
    plural: str
    forms: tuple[str, ...]
    is_fuzzy: bool = False


def parse_po(text: str) -> list[Entry]:
    """The entries of a `.po` file, its header (the empty message) among them.

    Raises:
        ValueError: a line that is none of comments, keywords and strings.
    """
    return [_entry(block) for block in _blocks(text)]


def translations(entries: list[Entry]) -> gettext.GNUTranslations:
    """What gettext makes of the entries."""
    return gettext.GNUTranslations(BytesIO(compile_mo(entries)))


def compile_mo(entries: list[Entry]) -> bytes:
    """The entries in the binary form that every gettext reads; a message without a translation is left out."""
    pairs = sorted(
        (f"{each.message}\0{each.plural}" if each.plural else each.message, "\0".join(each.forms))
        for each in entries
        if all(each.forms)
    )
    keys, values = ([text.encode() for text in side] for side in zip(*pairs, strict=True))
    tables_bytes = 2 * 8 * len(pairs)
    head = struct.pack(
        "<7I", MAGIC, 0, len(pairs), HEADER_BYTES, HEADER_BYTES + 8 * len(pairs), 0, HEADER_BYTES + tables_bytes
    )
    table, start = b"", HEADER_BYTES + tables_bytes
    for text in (*keys, *values):
        table += struct.pack("<2I", len(text), start)
        start += len(text) + 1
    return head + table + b"".join(text + b"\0" for text in (*keys, *values))


def _blocks(text: str) -> Iterator[list[str]]:
    """The lines of each entry: entries stand apart by an empty line."""
    block: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.strip():
            block.append(line.strip())
        elif block:
            yield block
            block = []


def _entry(block: list[str]) -> Entry:
    found: dict[str, str] = {}
    keyword, is_fuzzy = "", False
    for line in block:
        if line.startswith("#"):
            is_fuzzy |= line.startswith("#,") and "fuzzy" in line
            continue
        if not line.startswith('"'):
            keyword, _, line = line.partition(" ")
        if not (keyword.startswith("msg") and line.startswith('"')):
            raise ValueError(f"no line of a .po file: {keyword} {line}")
        found[keyword] = found.get(keyword, "") + str(ast.literal_eval(line))
    forms = tuple(text for name, text in sorted(found.items()) if name.startswith("msgstr"))
    return Entry(found["msgid"], found.get("msgid_plural", ""), forms, is_fuzzy)
