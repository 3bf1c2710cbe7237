"""Text to token ids and back: a model's `tokenizer.json`, and what `tokenizer_config.json` adds to it.

The first and the last station of a token's journey. User text cannot write control tokens: "<｜User｜>" in a prompt is
seven ordinary tokens, unless the caller asks otherwise, as the chat template's path does. Knows no model.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

from tokenizers import AddedToken
from tokenizers import Tokenizer as Vocabulary

from shoal.client.text.chat_template import ChatMessage, ChatTemplate
from shoal.client.text.detokenizer import IncrementalDetokenizer
from shoal.client.text.token_bytes import TokenBytes
from shoal.protocol.errors import CheckpointError, InvalidRequest, ModelNotFound

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
GENERATION_FILE = "generation_config.json"

SPECIAL_TOKEN_KEYS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
"""The keys of tokenizer_config.json that chat templates see (transformers `SPECIAL_TOKENS_ATTRIBUTES`)."""


class Tokenizer:
    """A model's tokenizer and chat template."""

    def __init__(
        self,
        tokenizer_json: bytes,
        config: Mapping[str, object],
        chat_template: str | None = None,
        strftime_now: Callable[[str], str] | None = None,
        end_token_ids: Sequence[int] = (),
    ) -> None:
        """Use `load`. config: the contents of tokenizer_config.json."""
        self.end_token_ids = tuple(end_token_ids)
        """Tokens that end an answer, besides those of the model's config.json (generation_config.json)."""
        self.special_tokens = _special_tokens(config)
        """Contents of `bos_token`, `eos_token`, … by name."""
        self._vocabulary = _vocabulary(tokenizer_json)
        self.token_bytes = TokenBytes(self._vocabulary)
        """What a token stands for."""
        self._plain = _blind_to_control_tokens(_vocabulary(tokenizer_json))
        source = chat_template or _template_in(config)
        self._template = ChatTemplate(source, self.special_tokens, strftime_now) if source else None

    @classmethod
    def load(cls, directory: Path, strftime_now: Callable[[str], str] | None = None) -> "Tokenizer":
        """Read a model directory's tokenizer.

        Raises:
            ModelNotFound: it has no tokenizer.json. CheckpointError: a file of it cannot be understood.
        """
        path = directory / TOKENIZER_FILE
        if not path.is_file():
            raise ModelNotFound(f"{directory} has no {TOKENIZER_FILE}")
        template = directory / TEMPLATE_FILE
        source = template.read_text(encoding="utf-8") if template.is_file() else None
        end_token_ids = _end_token_ids(_read_config(directory / GENERATION_FILE))
        return cls(path.read_bytes(), _read_config(directory / CONFIG_FILE), source, strftime_now, end_token_ids)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; the model's embedding may be larger."""
        return self._vocabulary.get_vocab_size()

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text, if the model has one."""
        return self.token_id(self.special_tokens.get("bos_token", ""))

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a text, if the model has one."""
        return self.token_id(self.special_tokens.get("eos_token", ""))

    def token_id(self, content: str) -> int | None:
        """Id of the token with exactly this content."""
        return self._vocabulary.token_to_id(content)

    def encode(self, text: str, *, parses_control_tokens: bool = False, adds_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        parses_control_tokens: read "<｜User｜>" and its like as the tokens of that name; never for text from a user.
        adds_special_tokens: add what `tokenizer.json` itself adds (a BOS for some models, nothing for DeepSeek-V3).
        """
        vocabulary = self._vocabulary if parses_control_tokens else self._plain
        return vocabulary.encode(text, add_special_tokens=adds_special_tokens).ids

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text to continue: as in training, it begins with BOS if the model has one."""
        begin = [] if self.bos_token_id is None else [self.bos_token_id]
        return begin + self.encode(text, adds_special_tokens=False)

    def encode_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, object] | None = None,
    ) -> list[int]:
        """Token ids of a conversation, up to where the answer begins. Arguments and errors: `ChatTemplate.render`.

        The rendered text is parsed with control tokens, as everywhere: content that contains them is not neutralized.
        """
        text = self.chat_template.render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, variables=variables
        )
        return self.encode(text, parses_control_tokens=True, adds_special_tokens=False)

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    @property
    def chat_template(self) -> ChatTemplate:
        """Raises InvalidRequest if the model has none."""
        if self._template is None:
            raise InvalidRequest("the model has no chat template; give a text to continue instead of messages")
        return self._template

    def decode(self, ids: Sequence[int], *, skips_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD."""
        return self._vocabulary.decode(list(ids), skip_special_tokens=skips_special_tokens)

    @property
    def tokenizer_json(self) -> str:
        """The contents of `tokenizer.json`, for libraries that build tables of their own from it."""
        return self._vocabulary.to_str()

    def detokenizer(self) -> IncrementalDetokenizer:
        """Decodes one answer token by token."""
        return IncrementalDetokenizer(self._vocabulary)


def _vocabulary(tokenizer_json: bytes) -> Vocabulary:
    try:
        vocabulary = Vocabulary.from_buffer(tokenizer_json)
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(TOKENIZER_FILE, None, str(error)) from error
    vocabulary.no_padding()
    vocabulary.no_truncation()
    return vocabulary


def _blind_to_control_tokens(vocabulary: Vocabulary) -> Vocabulary:
    """A vocabulary that encodes control tokens' names as the ordinary text they are.

    The library can do so for tokens marked special; DeepSeek-V3 marks only three of its twenty. Added tokens without
    brackets are text for speed (runs of spaces, in some models) and stay.
    """
    added = vocabulary.get_added_tokens_decoder().values()
    control = [token.content for token in added if token.content.startswith("<") and token.content.endswith(">")]
    vocabulary.add_special_tokens([AddedToken(content, special=True) for content in control])
    vocabulary.encode_special_tokens = True
    return vocabulary


def _read_config(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(path.name, None, f"not JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(path.name, None, "not a JSON object")
    return cast(dict[str, object], config)


def _end_token_ids(config: Mapping[str, object]) -> list[int]:
    """`eos_token_id`: one id, a list of ids, or none."""
    value = config.get("eos_token_id")
    ids: list[object] = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token_id) is int for token_id in ids):
        raise CheckpointError(GENERATION_FILE, None, f"eos_token_id is {value!r}, expected token ids")
    return cast(list[int], ids)


def _special_tokens(config: Mapping[str, object]) -> dict[str, str]:
    """Special tokens by name; each is a string, or an object with its content."""
    tokens = {}
    for key in SPECIAL_TOKEN_KEYS:
        value = config.get(key)
        content = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(content, str):
            tokens[key] = content
    return tokens


def _template_in(config: Mapping[str, object]) -> str | None:
    """`chat_template`: a string, or a list of named ones of which we take the default."""
    value = config.get("chat_template")
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, Mapping)}
        value = named.get("default")
    if value is not None and not isinstance(value, str):
        raise CheckpointError(CONFIG_FILE, None, "chat_template is neither a string nor a list with a default")
    return value
