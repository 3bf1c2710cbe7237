"""Gather the messages of the source for translators: `client/locale/shoal.pot`, and each `.po` brought up to it.

    python tools/messages.py            write the files; what is new is left empty, what is gone is dropped
    python tools/messages.py --check    change nothing; say what is out of date or untranslated, and fail

Messages are the literals of `_()`, `N_()`, `ngettext()` and `Said()` in client, cli, node and simulations, and the help
texts of the verbs.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from shoal.cli.help_text import help_texts
from shoal.cli.main import app
from shoal.client.catalogue import Entry, parse_po
from shoal.client.translate import LOCALE_DIRECTORY

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = LOCALE_DIRECTORY / "shoal.pot"
MARKERS = ("_", "N_", "ngettext", "Said")
PLURAL_RULES = {
    "": "nplurals=2; plural=(n != 1);",
    "es": "nplurals=2; plural=(n != 1);",
    "fr": "nplurals=2; plural=(n > 1);",
    "pt_BR": "nplurals=2; plural=(n > 1);",
    "sw": "nplurals=2; plural=(n != 1);",
}
"""By Unicode's CLDR 47, its forms for whole numbers below a million."""

Found = dict[tuple[str, str], str]
"""(message, plural or empty) to where it stands first."""


def gather() -> Found:
    """All messages, in the order of the tree, then of the verbs' help."""
    found: Found = {}
    for path in sorted(
        each for package in ("client", "cli", "node", "simulations") for each in (ROOT / package).rglob("*.py")
    ):
        for message in _marked(ast.parse(path.read_text(encoding="utf-8"))):
            found.setdefault(message, str(path.relative_to(ROOT)))
    for text in help_texts(app):
        found.setdefault((text, ""), "help")
    return found


def file_of(language: str, found: Found, entries: list[Entry]) -> str:
    """A `.po` file of all that was found, with the translations of the entries."""
    known = {(each.message, each.plural): each.forms for each in entries}
    header = [
        *(f"Language: {language}",) * bool(language),
        "MIME-Version: 1.0", "Content-Type: text/plain; charset=UTF-8", "Content-Transfer-Encoding: 8bit",
        f"Plural-Forms: {PLURAL_RULES[language]}",
    ]  # fmt: skip
    blocks = [
        "# Messages of shoal. Words and their meanings: GLOSSARY.md. Made and checked by tools/messages.py.\n"
        'msgid ""\nmsgstr ""\n' + "\n".join(_quoted(line + "\n") for line in header)
    ]
    for (message, plural), place in found.items():
        forms = known.get((message, plural)) or ("", "") if plural else known.get((message, plural)) or ("",)
        lines = [f"#: {place}", f"msgid {_quoted(message)}"]
        if plural:
            lines += [f"msgid_plural {_quoted(plural)}"]
            lines += [f"msgstr[{number}] {_quoted(form)}" for number, form in enumerate(forms)]
        else:
            lines += [f"msgstr {_quoted(forms[0])}"]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def files() -> dict[Path, str]:
    """Every file as it should be."""
    found = gather()
    wanted = {TEMPLATE: file_of("", found, [])}
    for path in sorted(LOCALE_DIRECTORY.glob("*.po")):
        wanted[path] = file_of(path.stem, found, parse_po(path.read_text(encoding="utf-8")))
    return wanted


def untranslated(text: str) -> list[str]:
    """The messages of a file that have no translation, or one that somebody should look at."""
    return [each.message for each in parse_po(text) if not all(each.forms) or each.is_fuzzy]


def main(arguments: list[str]) -> int:
    """Write or check."""
    status = 0
    for path, text in files().items():
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            print(f"{path.name} is out of date: run tools/messages.py", file=sys.stderr)
            status = 1
        missing = untranslated(text) if path != TEMPLATE else []
        for message in missing:
            print(f"{path.name}: no translation of {message!r}", file=sys.stderr)
        status = 1 if missing else status
    return status


def _marked(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MARKERS:
            words = [str(each.value) for each in node.args if isinstance(each, ast.Constant)]
            if words and words[0]:
                yield words[0], words[1] if node.func.id == "ngettext" else ""


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
