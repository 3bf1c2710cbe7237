"""docs/schemas says what the programs print: the files are those that the code makes."""

import json

import pytest
from jsonschema import Draft202012Validator

from tools.schemas import DIRECTORY, VERBS, schema_of


@pytest.mark.parametrize("verb", VERBS)
def test_the_file_is_what_the_code_makes(verb: str) -> None:
    assert (DIRECTORY / f"{verb}.json").read_text(encoding="utf-8") == schema_of(verb), "run tools/schemas.py"


@pytest.mark.parametrize("verb", VERBS)
def test_the_schema_is_one(verb: str) -> None:
    Draft202012Validator.check_schema(json.loads(schema_of(verb)))
