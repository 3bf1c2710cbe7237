"""A conversation as the text that the model was trained on: the checkpoint's own jinja2 template, in a sandbox.

Stands before the tokenizer. The template is data from a model's publisher: it runs in jinja2's immutable sandbox, sees
only the messages and the special tokens, and reads no clock unless one is handed in. Knows no token ids. Whitespace
rules, filters and names are those of transformers (`utils/chat_template_utils.py`), so that templates render alike.
"""

import json
from collections.abc import Callable, Mapping, Sequence

from jinja2 import Environment, Template, TemplateError, TemplateSyntaxError, meta
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shoal.protocol.errors import CheckpointError, InvalidRequest

ChatMessage = Mapping[str, object]
"""One message: `role` (system, user, assistant, tool), `content`, and what the template knows besides."""


class ChatTemplate:
    """One model's template."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], strftime_now: Callable[[str], str] | None = None
    ) -> None:
        """special_tokens: `bos_token`, `eos_token`, … · strftime_now: the date for templates that print it.

        Raises:
            CheckpointError: not a jinja2 template.
        """
        self._special_tokens = dict(special_tokens)
        environment = _environment(strftime_now)
        self._template = _compiled(source, environment)
        self.source = source
        """As its publisher wrote it."""
        self.variables = frozenset(meta.find_undeclared_variables(environment.parse(source)))
        """Names that the template reads from outside, such as `messages`, and `tools` if it knows them."""

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """The conversation as text, up to where the answer begins.

        variables: what the template knows besides, such as `thinking`.

        Raises:
            InvalidRequest: the template refuses these messages. CheckpointError: it tries to leave the sandbox.
        """
        names = {
            **self._special_tokens,
            **(variables or {}),
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._template.render(names)
        except SecurityError as error:
            raise CheckpointError("the chat template", None, f"leaves its sandbox: {error}") from error
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise InvalidRequest(f"the model's chat template refuses these messages: {error}") from error


def _environment(strftime_now: Callable[[str], str] | None) -> Environment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    if strftime_now is not None:
        environment.globals["strftime_now"] = strftime_now
    return environment


def _compiled(source: str, environment: Environment) -> Template:
    try:
        return environment.from_string(source)
    except TemplateSyntaxError as error:
        raise CheckpointError("the chat template", None, f"line {error.lineno}: {error.message}") from error


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without jinja2's own escapes for HTML, which are not what models were trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
