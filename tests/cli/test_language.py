"""The command line in the user's language: help, output, errors; JSON stays as it is."""

import gettext
import json

import pytest
from typer.testing import CliRunner

from shoal.cli.error_words import KINDS, explain
from shoal.cli.help_text import help_texts, translated_command
from shoal.cli.language import take_language
from shoal.cli.main import app
from shoal.cli.reports import coverage_lines
from shoal.client import translate
from shoal.client.catalogue import parse_po, translations
from shoal.client.translate import LOCALE_DIRECTORY
from shoal.protocol.control import Coverage, LayerCoverage, as_json
from shoal.protocol.errors import NodeNotRunning
from shoal.protocol.ids import LayerId

SOME = Coverage("ab" * 32, 1, 2, 1, 0, LayerId(3), 1000, (LayerCoverage(LayerId(3), (0, 1)),))


@pytest.fixture
def swahili(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = parse_po((LOCALE_DIRECTORY / "sw.po").read_text(encoding="utf-8"))
    monkeypatch.setattr(translate, "_catalogue", lambda: translations(entries))


@pytest.mark.usefixtures("swahili")
def test_all_help_is_in_the_users_language() -> None:
    english = help_texts(app)
    translated_command(app)
    assert [text for text in english if translate._(text) == text] == []


@pytest.mark.usefixtures("swahili")
def test_output_is_in_the_users_language_and_json_is_not() -> None:
    assert coverage_lines(SOME)[0].startswith("ufunikaji")
    assert json.loads(json.dumps(as_json(SOME)))["worst_layer"] == 3


@pytest.mark.usefixtures("swahili")
def test_every_kind_of_error_is_explained_in_the_users_language() -> None:
    assert explain(NodeNotRunning("node")) == "Hakuna nodi inayoendesha kwenye mashine hii."
    assert all(translate._(words) != words for _, words in KINDS)


def test_in_english_an_error_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translate, "_catalogue", gettext.NullTranslations)
    assert explain(NodeNotRunning("node")) == ""


@pytest.mark.parametrize(
    ("arguments", "language"),
    [
        (["--lang", "sw", "status"], "sw"),
        (["--lang=fr", "--help"], "fr"),
        (["run", "--lang", "sw"], None),
        (["--lang"], None),
        ([], None),
    ],
)
def test_the_option_before_the_verb_is_what_the_environment_says(arguments: list[str], language: str | None) -> None:
    environment: dict[str, str] = {}
    take_language(arguments, environment)
    assert environment.get("LANGUAGE") == language


def test_a_language_that_we_do_not_have_is_refused_with_those_we_have() -> None:
    result = CliRunner().invoke(app, ["--lang", "tlh", "version"])
    assert result.exit_code == 2
    assert "pt_BR" in result.output
