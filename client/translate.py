"""The user's language: stdlib gettext, bound when the first word is asked for and never at import.

    from shoal.client.translate import N_, _
    print(_("stopped"))          # translated here
    TITLE = N_("Swarm")          # marked for the catalogue; `_(TITLE)` where it is shown

Every text that a user reads goes through here; error messages and logs, which people paste to each other, stay English.
Catalogues are `locale/<language>/LC_MESSAGES/shoal.mo` beside this file; without one the words are English.
"""

import gettext
from functools import cache
from pathlib import Path

DOMAIN = "shoal"
LOCALE_DIRECTORY = Path(__file__).resolve().parent / "locale"


@cache
def _catalogue() -> gettext.NullTranslations:
    """The catalogue of LANGUAGE, LC_ALL, LC_MESSAGES or LANG, in this order, as they are when a word is first shown."""
    return gettext.translation(DOMAIN, LOCALE_DIRECTORY, fallback=True)


def _(message: str) -> str:
    """The message in the user's language."""
    return _catalogue().gettext(message)


def ngettext(singular: str, plural: str, number: int) -> str:
    """The form that fits the number, in the user's language; the number is not filled in."""
    return _catalogue().ngettext(singular, plural, number)


def N_(message: str) -> str:
    """The message itself: marks a constant for the catalogue, to be translated where it is shown."""
    return message
