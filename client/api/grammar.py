"""Grammars that an answer keeps to: a JSON schema, or tool calls in DeepSeek-V3.1's format.

The masks are llguidance's (Rust, MIT): which tokens may come next, in about 50 µs. A grammar is written in its dialect
of Lark, in which `<[7]>` is token 7: markers that are one token of the model must come as it and not as its letters.
Knows a tokenizer; knows no logits. Runs on the trunk's worker once an answer has begun.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence

import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from shoal.client.api.deepseek_output import CALL_BEGIN, CALL_END, CALL_SEP, CALLS_BEGIN, CALLS_END, THINK_END
from shoal.client.api.errors import bad_request
from shoal.client.text.tokenizer import Tokenizer
from shoal.protocol.errors import InvalidRequest

MAX_SCHEMA_CHARS = 64 * 1024
"""Of one request's schemas together; OpenAI allows 15,000 characters of names."""

WHITESPACE = r" ?|\n {0,16}"
"""Between JSON's signs: room to indent, and none to dawdle in until max_tokens."""

JsonSchema = Mapping[str, object]


class Grammars:
    """Makes grammars for one model's tokens."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_token_ids: Sequence[int]) -> None:
        """vocab_size: the width of the model's logits."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._end_token_ids = list(end_token_ids)
        self._tokens: LLTokenizer | None = None

    def json(self, schema: JsonSchema | None) -> str:
        """Any JSON that the schema accepts; None: any object."""
        return f"start: {_json(schema or {'type': 'object'})}"

    def calls(self, parameters: Mapping[str, JsonSchema | None], is_parallel: bool) -> str:
        """One call, or more if `is_parallel`, of the functions named. parameters: of each function."""
        begin, end = self._marker(CALLS_BEGIN), self._marker(CALLS_END)
        functions = [
            f"{json.dumps(name)} {self._marker(CALL_SEP)} {_json(schema or {'type': 'object'})}"
            for name, schema in parameters.items()
        ]
        choice = "\n    | ".join(f"function{i}" for i in range(len(functions)))
        rules = [f"function{i}: {rule}" for i, rule in enumerate(functions)]
        start = f"start: {begin} call{'+' if is_parallel else ''} {end}"
        call = f"call: {self._marker(CALL_BEGIN)} ({choice}) {self._marker(CALL_END)}"
        return "\n".join([start, call, *rules])

    def after_reasoning(self, grammar: str) -> str:
        """The grammar, once the model has thought: anything up to the end of its thinking comes first."""
        body = grammar.replace("start:", "body:", 1)
        if self._tokenizer.token_id(THINK_END) is None:
            return f"start: thinking body\nthinking[suffix={json.dumps(THINK_END)}]: /(?s:.*)/\n{body}"
        return f"start: THINKING {self._marker(THINK_END)} body\nTHINKING: /(?s:.*)/\n{body}"

    async def check(self, grammar: str) -> None:
        """Try a grammar, on a thread: large ones take a second.

        Raises:
            ApiError: 400, a schema is too large, not a schema, or says what can not be kept to.
        """
        if len(grammar) > MAX_SCHEMA_CHARS:
            raise bad_request(f"the JSON schema is larger than {MAX_SCHEMA_CHARS} characters", "response_format")
        reason = await asyncio.to_thread(self._reason_against, grammar)
        if reason:
            raise bad_request(f"the JSON schema can not be used: {reason}", "response_format", "invalid_json_schema")

    def constraint(self, grammar: str) -> "GrammarConstraint":
        """One answer's state in a grammar that `check` has passed."""
        return GrammarConstraint(LLMatcher(self._vocabulary(), grammar), self._vocab_size)

    def _reason_against(self, grammar: str) -> str:
        reason: str = LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(grammar), self._vocabulary())
        return "" if not reason or reason.startswith("WARNING") else reason.splitlines()[0]

    def _vocabulary(self) -> LLTokenizer:
        """Made at the first use: it takes a second for DeepSeek-V3's 129,280 tokens."""
        if self._tokens is None:
            source = self._tokenizer.tokenizer_json
            self._tokens = LLTokenizer(source, n_vocab=self._vocab_size, eos_token=self._end_token_ids)
        return self._tokens

    def _marker(self, text: str) -> str:
        token_id = self._tokenizer.token_id(text)
        return json.dumps(text, ensure_ascii=False) if token_id is None else f"<[{token_id}]>"


class GrammarConstraint:
    """Where one answer stands in its grammar: a `TokenConstraint`."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def allowed(self) -> Tensor:
        """bool[V].

        Raises:
            InvalidRequest: the grammar went over a limit of its library.
        """
        packed = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)  # one bit a token
        self._check()
        bits = packed[:, None] >> torch.arange(8, dtype=torch.uint8)
        return (bits & 1).flatten()[: self._vocab_size].bool()

    def accept(self, token_id: int) -> None:
        """Raises InvalidRequest as `allowed`."""
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InvalidRequest(f"the grammar of the answer failed: {self._matcher.get_error().splitlines()[0]}")


def _json(schema: JsonSchema) -> str:
    """A schema inside a grammar, with our whitespace."""
    return f"%json {json.dumps({**schema, 'x-guidance': {'whitespace_pattern': WHITESPACE}})}"
