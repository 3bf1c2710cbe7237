"""Tokens as OpenAI's log-probabilities name them."""

from shoal.client.engine.generate import Token
from shoal.client.engine.logprobs import TopLogprobs
from shoal.client.text.tokenizer import Tokenizer

MIN_LOGPROB = -9999.0
"""JSON knows no infinity; OpenAI writes this for tokens that can not come."""


def token_name(tokenizer: Tokenizer, token_id: int) -> str:
    """A token's text; of a part of a character its bytes, in OpenAI's form, so that no two tokens look alike."""
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_logprob(tokenizer: Tokenizer, token: Token) -> dict[str, object]:
    """An entry of `logprobs.content` of a chat choice."""
    likeliest = [_entry(tokenizer, token_id, logprob) for token_id, logprob in token.top_logprobs]
    return _entry(tokenizer, token.id, token.logprob) | {"top_logprobs": likeliest}


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, object]:
    data = tokenizer.token_bytes(token_id)
    return {
        "token": token_name(tokenizer, token_id),
        "logprob": max(logprob, MIN_LOGPROB),
        "bytes": list(data),
    }


class CompletionLogprobs:
    """The `logprobs` object of a text completion: four lists of equal length, one entry a token."""

    def __init__(self, tokenizer: Tokenizer, num_top: int) -> None:
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._offset = 0
        self._clear()

    def add(self, token_id: int, logprob: float | None, top_logprobs: TopLogprobs) -> None:
        """The next token; `logprob` is None for a prompt's first, which nothing precedes."""
        name = token_name(self._tokenizer, token_id)
        self._tokens.append(name)
        self._offsets.append(self._offset)
        self._offset += len(name)
        self._logprobs.append(None if logprob is None else max(logprob, MIN_LOGPROB))
        self._top.append(None if logprob is None else self._likeliest(name, logprob, top_logprobs))

    def take(self) -> dict[str, object]:
        """What has been added since the last time."""
        taken: dict[str, object] = {
            "tokens": self._tokens,
            "token_logprobs": self._logprobs,
            "top_logprobs": self._top if self._num_top else None,
            "text_offset": self._offsets,
        }
        self._clear()
        return taken

    def _likeliest(self, name: str, logprob: float, top_logprobs: TopLogprobs) -> dict[str, float]:
        """The token itself is always among them, as OpenAI has it."""
        likeliest = {token_name(self._tokenizer, token_id): max(value, MIN_LOGPROB) for token_id, value in top_logprobs}
        return likeliest | {name: max(logprob, MIN_LOGPROB)}

    def _clear(self) -> None:
        self._tokens: list[str] = []
        self._offsets: list[int] = []
        self._logprobs: list[float | None] = []
        self._top: list[dict[str, float] | None] = []


def usage(num_prompt_tokens: int, num_completion_tokens: int, num_reasoning_tokens: int = 0) -> dict[str, object]:
    """OpenAI's `usage`."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_completion_tokens,
        "total_tokens": num_prompt_tokens + num_completion_tokens,
        "completion_tokens_details": {"reasoning_tokens": num_reasoning_tokens},
    }
