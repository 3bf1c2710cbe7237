"""The user's language: which is taken, that every catalogue is whole, and that nothing in it breaks a sentence."""

import string

import pytest

from shoal.client.catalogue import Entry, compile_mo, parse_po, translations
from shoal.client.translate import LOCALE_DIRECTORY, languages, wished

LANGUAGES = [language for language in languages() if language != "en"]
TEMPLATE = {
    (each.message, each.plural) for each in parse_po((LOCALE_DIRECTORY / "shoal.pot").read_text(encoding="utf-8"))
}


def entries(language: str) -> list[Entry]:
    return parse_po((LOCALE_DIRECTORY / f"{language}.po").read_text(encoding="utf-8"))


def test_the_five_languages_are_there() -> None:
    assert languages() == ["en", "es", "fr", "pt_BR", "sw"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_catalogue_has_every_message_translated_and_none_doubtful(language: str) -> None:
    found = entries(language)
    assert {(each.message, each.plural) for each in found} == TEMPLATE
    assert [each.message for each in found if not all(each.forms) or each.is_fuzzy] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_fills_in_what_its_message_fills_in(language: str) -> None:
    for each in entries(language):
        for form in each.forms if each.message else ():
            assert placeholders(form) == placeholders(each.plural or each.message), form


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_keeps_the_edges_of_its_message(language: str) -> None:
    for each in entries(language):
        for form in each.forms if each.message else ():
            assert form.startswith(" ") == each.message.startswith(" "), form
            assert form.endswith("\n") == each.message.endswith("\n"), form


@pytest.mark.parametrize("language", LANGUAGES)
def test_numbers_choose_a_form_in_every_language(language: str) -> None:
    catalogue = translations(entries(language))
    said = {catalogue.ngettext("{number} peer", "{number} peers", number) for number in (0, 1, 2, 5, 100)}
    assert len(said) == 2
    assert not any("peer" in words for words in said)


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({}, "en"),
        ({"LANG": "sw_KE.UTF-8"}, "sw"),
        ({"LANG": "pt_PT.UTF-8"}, "pt_BR"),
        ({"LANG": "pt-BR"}, "pt_BR"),
        ({"LC_ALL": "fr_FR@euro", "LANG": "es_ES"}, "fr"),
        ({"LANGUAGE": "de:es", "LANG": "fr_FR"}, "es"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANGUAGE": "en:fr"}, "en"),
        ({"LANG": "../../etc/passwd"}, "en"),
    ],
)
def test_the_environment_says_the_language(environment: dict[str, str], language: str) -> None:
    assert wished(environment) == language


def test_what_is_not_translated_is_shown_as_it_is() -> None:
    header = Entry("", "", ("Content-Type: text/plain; charset=UTF-8\n",))
    catalogue = translations([header, Entry("node", "", ("",)), Entry("swarm", "", ("kundi",))])
    assert catalogue.gettext("node") == "node"
    assert catalogue.gettext("swarm") == "kundi"


def test_a_catalogue_in_binary_form_is_what_the_manual_says() -> None:
    assert compile_mo([Entry("a", "", ("é",))]).hex() == (
        "de120495" "00000000" "01000000" "1c000000" "24000000" "00000000" "2c000000"
        "01000000" "2c000000" "02000000" "2e000000" "6100" "c3a900"
    )  # fmt: skip


@pytest.mark.parametrize("text", ['msgid "a" "b', "hello", 'msgid "a\nmsgstr "b"'])
def test_a_broken_file_is_refused(text: str) -> None:
    with pytest.raises((ValueError, SyntaxError)):
        parse_po(text)


def placeholders(text: str) -> set[str]:
    return {f"{name}:{spec}" for _, name, spec, _ in string.Formatter().parse(text) if name is not None}
