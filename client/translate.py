"""The user's language: stdlib gettext, bound when the first word is asked for and never at import.

    from shoal.client.translate import N_, _
    print(_("stopped"))          # translated here
    TITLE = N_("Swarm")          # marked for the catalogue; `_(TITLE)` where it is shown

Every text that a user reads goes through here. What an error says in detail, and logs, which people paste to each
other, stay English. Catalogues are `locale/<language>.po` beside this file, checked and made ready for translators by
`tools/messages.py`; without one the words are English, the language of the source.
"""

import gettext
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

LOCALE_DIRECTORY = Path(__file__).resolve().parent / "locale"

SOURCE_LANGUAGE = "en"

VARIABLES = ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")
"""Where a user says the language, the first that is set; LANGUAGE may name several, `sw:fr`."""


def languages() -> list[str]:
    """What there is to choose from, English first."""
    return [SOURCE_LANGUAGE, *sorted(path.stem for path in LOCALE_DIRECTORY.glob("*.po"))]


def wished(environment: Mapping[str, str]) -> str:
    """The first language of the user's that we have: `pt_PT.UTF-8` gets pt_BR, the nearest; else English."""
    named = next((environment[name] for name in VARIABLES if environment.get(name)), SOURCE_LANGUAGE)
    known = languages()
    for wish in named.split(":"):
        tag = wish.split(".")[0].split("@")[0].replace("-", "_")
        near = [name for name in known if name.split("_")[0] == tag.split("_")[0]]
        if near:
            return tag if tag in near else near[0]
    return SOURCE_LANGUAGE


@cache
def _catalogue() -> gettext.NullTranslations:
    """The catalogue of the language that the environment says when a word is first shown."""
    language = wished(os.environ)
    if language == SOURCE_LANGUAGE:
        return gettext.NullTranslations()
    from shoal.client.catalogue import parse_po, translations

    return translations(parse_po((LOCALE_DIRECTORY / f"{language}.po").read_text(encoding="utf-8")))


def _(message: str) -> str:
    """The message in the user's language."""
    return _catalogue().gettext(message)


def ngettext(singular: str, plural: str, number: int) -> str:
    """The form that fits the number, in the user's language; the number is not filled in."""
    return _catalogue().ngettext(singular, plural, number)


def N_(message: str) -> str:
    """The message itself: marks a constant for the catalogue, to be translated where it is shown."""
    return message
