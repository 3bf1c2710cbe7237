"""What a generation is made of: its tokens, why it ended, and all of it with its times.

The results of `generate.py`. Knows no model and no text but the tokens' own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from shoal.client.engine.logprobs import TopLogprobs


class FinishReason(Enum):
    """Why a generation ended (OpenAI's words)."""

    STOP = "stop"
    """An end-of-sequence token or a stop string."""
    LENGTH = "length"
    """`max_tokens`, or the model's context."""


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token. `text` may be empty while bytes or a possible stop string are held back."""

    id: int
    text: str
    index: int
    """0 for the first generated token."""
    logprob: float
    """Natural log of its probability under the model, before penalty, temperature and filters."""
    finish_reason: FinishReason | None = None
    """Set on the last token of a generation, and only there. An end-of-sequence token is one too, without text."""
    top_logprobs: TopLogprobs = ()
    """The likeliest tokens in its place, as many as `Sampling.top_logprobs`; under the model, as `logprob` is."""
    num_drafted: int = 0
    """Drafts that were verified by the pass which brought this token, told by the first token of the pass."""
    was_drafted: bool = False
    """Whether a draft had named it, so that it came without a pass of its own."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished generation; times are of the event loop's clock."""

    text: str
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    finish_reason: FinishReason
    ttft_s: float
    """From the call to the first token."""
    tokens_per_s: float
    """Of the tokens after the first; 0 if there is only one."""
    drafted_tokens: int = 0
    """Guesses that passes verified (speculation)."""
    accepted_tokens: int = 0
    """Guesses that were right, each a token without a pass of its own."""
    tokens_per_pass: float = 1.0
    """Tokens by passes that brought some."""


class Recorder:
    """Turns a stream of tokens into a `Generation`; its times count from its making. clock: seconds."""

    def __init__(self, num_prompt_tokens: int, clock: Callable[[], float]) -> None:
        self._num_prompt_tokens = num_prompt_tokens
        self._clock = clock
        self._started = clock()
        self._tokens: list[Token] = []
        self._times: list[float] = []

    def add(self, token: Token) -> None:
        """Take the next token, now."""
        self._tokens.append(token)
        self._times.append(self._clock())

    def generation(self) -> Generation:
        """What was recorded; at least one token."""
        tokens, times = self._tokens, self._times
        return Generation(
            text="".join(token.text for token in tokens),
            token_ids=tuple(token.id for token in tokens),
            num_prompt_tokens=self._num_prompt_tokens,
            finish_reason=tokens[-1].finish_reason or FinishReason.LENGTH,
            ttft_s=times[0] - self._started,
            tokens_per_s=(len(tokens) - 1) / (times[-1] - times[0]) if times[-1] > times[0] else 0.0,
            drafted_tokens=sum(token.num_drafted for token in tokens),
            accepted_tokens=sum(token.was_drafted for token in tokens),
            tokens_per_pass=len(tokens) / sum(not token.was_drafted for token in tokens),
        )
