"""The visible loop: prefill, decode, stop.  (Signatures; the bodies follow.)"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import Enum

from shoal.client.sampler import Sampling
from shoal.client.tokenizer import Tokenizer
from shoal.client.trunk.model import Trunk
from shoal.client.trunk.moe import RoutedExperts


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
    """Natural log of its probability under the model, before temperature and filters."""
    finish_reason: FinishReason | None = None
    """Set on the last token of a generation, and only there."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished generation; times are of the event loop's clock."""

    text: str
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    finish_reason: FinishReason
    ttft_s: float
    tokens_per_s: float


class Engine:
    """One model, ready to generate: trunk, routed experts and, if the model has one, a tokenizer."""

    def __init__(self, trunk: Trunk, routed_experts: RoutedExperts, tokenizer: Tokenizer | None = None) -> None:
        raise NotImplementedError

    def stream(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncIterator[Token]:
        """Generate token by token (an async generator; close it or cancel the task to stop)."""
        raise NotImplementedError

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        """Generate to the end."""
        raise NotImplementedError
