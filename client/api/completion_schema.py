"""What `/v1/completions`, `/tokenize` and `/detokenize` take."""

from typing import Annotated

import msgspec
from msgspec import Meta

from shoal.client.api.chat_schema import Message, Tool
from shoal.client.api.errors import bad_request
from shoal.client.api.sampling_fields import SamplingFields
from shoal.client.engine.logprobs import MAX_TOP_LOGPROBS

MAX_PROMPTS = 128
"""Prompts of one request; they take places in the line one by one."""

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for text completions."""


class CompletionRequest(SamplingFields, frozen=True, kw_only=True):
    """The body of `/v1/completions`."""

    prompt: str | list[str | int | list[int]]
    """A text, token ids, or a list of texts or of lists of token ids."""
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    best_of: Annotated[int, Meta(ge=1)] | None = None
    suffix: str | None = None
    add_special_tokens: bool = True
    """Whether a text gets what the tokenizer adds (vLLM's field)."""
    parse_special: bool = True
    """Whether a text's "<｜User｜>" is the token of that name (llama.cpp's field). The caller is a program here."""

    def check(self) -> None:
        """Refuse what the types can not say.

        Raises:
            ApiError: 400, naming the field.
        """
        if self.best_of is not None and self.best_of != self.num_choices:
            raise bad_request("best_of: not supported; ask for n and choose", "best_of", "unsupported_parameter")
        if self.suffix:
            raise bad_request("suffix: not supported", "suffix", "unsupported_parameter")
        if self.limit == 0 and not self.echo:
            raise bad_request("max_tokens: 0 makes sense only with echo", "max_tokens")

    @property
    def limit(self) -> int:
        """Most tokens of each answer."""
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or many.

        Raises:
            ApiError: 400, a mixture, or too many.
        """
        if isinstance(self.prompt, str):
            return [self.prompt]
        texts = [part for part in self.prompt if isinstance(part, str)]
        ids = [part for part in self.prompt if isinstance(part, int)]
        lists = [part for part in self.prompt if isinstance(part, list)]
        kinds: list[list[str | list[int]]] = [[*texts], [ids] if ids else [], [*lists]]
        found = [kind for kind in kinds if kind]
        if len(found) != 1:
            raise bad_request("prompt: give a text, token ids, or a list of one kind", "prompt")
        if len(found[0]) * self.num_choices > MAX_PROMPTS:
            raise bad_request(f"prompt: at most {MAX_PROMPTS} answers in one request", "prompt")
        return found[0]


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `/tokenize`: a text, or a conversation."""

    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    model: str | None = None
    add_special_tokens: bool = True
    parse_special: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool | None = None
    chat_template_kwargs: dict[str, object] | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `/detokenize`."""

    tokens: list[Annotated[int, Meta(ge=0)]]
    model: str | None = None
