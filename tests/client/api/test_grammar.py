"""Grammars: with markers that are tokens and with markers that are text, before and after thinking.

Run: pytest tests/client/api/test_grammar.py
"""

import asyncio
import json

import pytest
import torch
from tokenizers import AddedToken
from tokenizers import Tokenizer as Vocabulary

from shoal.client.api.deepseek_output import (
    CALL_BEGIN,
    CALL_END,
    CALL_SEP,
    CALLS_BEGIN,
    CALLS_END,
    THINK_BEGIN,
    THINK_END,
)
from shoal.client.api.errors import ApiError
from shoal.client.api.grammar import Grammars
from shoal.client.text.tokenizer import Tokenizer
from shoal.protocol.errors import InvalidRequest
from shoal.simulations.demo_model import MODEL_DIRECTORY

MARKERS = [CALLS_BEGIN, CALL_BEGIN, CALL_SEP, CALL_END, CALLS_END, THINK_BEGIN, THINK_END]
VOCAB_SIZE, EOS = 2100, 1
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def tokenizer(has_markers: bool) -> Tokenizer:
    """The demonstration model's, perhaps with DeepSeek-V3.1's markers as tokens that are not special, as there."""
    vocabulary = Vocabulary.from_file(str(MODEL_DIRECTORY / "tokenizer.json"))
    if has_markers:
        vocabulary.add_tokens([AddedToken(marker, special=False, normalized=False) for marker in MARKERS])
    return Tokenizer(vocabulary.to_str().encode(), {})


@pytest.fixture(params=[True, False], ids=["markers are tokens", "markers are text"])
def words(request: pytest.FixtureRequest) -> Tokenizer:
    return tokenizer(request.param)


def accepts(words: Tokenizer, grammar: str, text: str) -> bool:
    """Whether every token of the text may come where it stands, and the end after the last."""
    grammars = Grammars(words, VOCAB_SIZE, [EOS])
    asyncio.run(grammars.check(grammar))
    constraint = grammars.constraint(grammar)
    for token_id in [*words.encode(text, parses_control_tokens=True), EOS]:
        allowed = constraint.allowed()
        assert allowed.shape == (VOCAB_SIZE,)
        assert allowed.dtype == torch.bool
        if not allowed[token_id]:
            return False
        constraint.accept(token_id)
    return True


def calls(words: Tokenizer, is_parallel: bool = True) -> str:
    return Grammars(words, VOCAB_SIZE, [EOS]).calls({"f": SCHEMA, "g": None}, is_parallel)


def call(name: str, arguments: str) -> str:
    return f"{CALL_BEGIN}{name}{CALL_SEP}{arguments}{CALL_END}"


def test_json_keeps_to_its_schema(words: Tokenizer) -> None:
    grammar = Grammars(words, VOCAB_SIZE, [EOS]).json(SCHEMA)
    assert accepts(words, grammar, '{"a": 1}')
    assert accepts(words, grammar, json.dumps({"a": 1}, indent=2))
    assert not accepts(words, grammar, '{"b": 1}')
    assert not accepts(words, grammar, '{"a": 1')
    assert not accepts(words, grammar, 'Sure: {"a": 1}')


def test_a_call_has_the_format_and_its_schema(words: Tokenizer) -> None:
    one = call("f", '{"a": 1}')
    assert accepts(words, calls(words), f"{CALLS_BEGIN}{one}{CALLS_END}")
    assert accepts(words, calls(words), f"{CALLS_BEGIN}{one}{call('g', '{}')}{CALLS_END}")
    assert not accepts(words, calls(words, is_parallel=False), f"{CALLS_BEGIN}{one}{one}{CALLS_END}")
    assert not accepts(words, calls(words), f"{CALLS_BEGIN}{call('h', '{}')}{CALLS_END}")
    assert not accepts(words, calls(words), f"{CALLS_BEGIN}{call('f', '{}')}{CALLS_END}")
    assert not accepts(words, calls(words), "I will call f.")


def test_thinking_comes_first_and_is_free(words: Tokenizer) -> None:
    grammars = Grammars(words, VOCAB_SIZE, [EOS])
    grammar = grammars.after_reasoning(grammars.json(SCHEMA))
    assert accepts(words, grammar, f'Is 1 < 2?\nYes.{THINK_END}{{"a": 2}}')
    assert accepts(words, grammar, f'{THINK_END}{{"a": 2}}')
    assert not accepts(words, grammar, "Is 1 < 2?")
    assert not accepts(words, grammar, f"hm{THINK_END}no")


@pytest.mark.parametrize(
    "schema",
    [{"type": "frog"}, {"$ref": "#/nowhere"}, {"type": "object", "properties": 5}, {"pattern": "(", "type": "string"}],
)
def test_a_schema_that_can_not_be_kept_is_refused(schema: dict[str, object]) -> None:
    grammars = Grammars(tokenizer(False), VOCAB_SIZE, [EOS])
    with pytest.raises(ApiError, match="JSON schema") as refused:
        asyncio.run(grammars.check(grammars.json(schema)))
    assert refused.value.status == 400


def test_a_schema_has_a_largest_size() -> None:
    grammars = Grammars(tokenizer(False), VOCAB_SIZE, [EOS])
    huge = {"enum": ["frog" * 10] * 5000}
    with pytest.raises(ApiError, match="larger than"):
        asyncio.run(grammars.check(grammars.json(huge)))


def test_a_token_against_the_grammar_is_an_error_and_not_a_crash() -> None:
    words = tokenizer(False)
    grammars = Grammars(words, VOCAB_SIZE, [EOS])
    constraint = grammars.constraint(grammars.json(SCHEMA))
    with pytest.raises(InvalidRequest, match="grammar"):
        constraint.accept(words.encode("frog")[0])
