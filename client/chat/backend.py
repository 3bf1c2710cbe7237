"""The seam between a conversation and whatever answers it: a swarm of ours, or any OpenAI-compatible endpoint.

Before it stand the chat screen and the line mode; behind it `swarm_chat.py` and `openai_chat.py`. Light on purpose: no
torch, no HTTP, so that a machine too small for a trunk can chat through a neighbour's `shoal serve`.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from shoal.client.routing.peers import PeerSnapshot
from shoal.protocol.ids import ExpertId, LayerId

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation."""

    role: str
    """One of ROLES."""
    content: str
    reasoning: str = ""
    """What an assistant thought aloud before its answer; never sent back."""

    def as_plain(self) -> dict[str, str]:
        """As a chat template and OpenAI's API want it."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How the next answer is made."""

    max_tokens: int = 512
    """Most new tokens of an answer."""
    temperature: float = 0.6
    """0: always the likeliest token. 0.6 is what DeepSeek-V3.1's generation_config.json says."""
    top_p: float = 0.95
    """From the same file."""
    repetition_penalty: float = 1.0
    """1: none. Small models need some; OpenAI's API has no word for it and is not told."""
    seed: int | None = None
    """The same seed gives the same answer; None: another each time."""
    thinking: bool = False
    """Ask the model to reason first, if its template knows how."""


@dataclass(frozen=True, slots=True)
class ChatPiece:
    """What arrived of an answer: text, reasoning, or both; either may be empty."""

    text: str = ""
    reasoning: str = ""
    num_tokens: int = 0
    """Tokens in this piece; an endpoint that does not say is taken to send one token at a time."""
    finish_reason: str | None = None
    """`stop` or `length`, on the last piece and only there."""


class ChatBackend(Protocol):
    """Something that answers a conversation."""

    @property
    def model_name(self) -> str:
        """What the user calls the model."""

    @property
    def where(self) -> str:
        """Where answers come from, in a few words: an address, or the swarm."""

    def stream(self, messages: Sequence[ChatMessage], options: ChatOptions) -> AsyncGenerator[ChatPiece, None]:
        """Answer the conversation, piece by piece; the last piece has a finish reason.

        Raises:
            ShoalError: before the first piece or in the middle. An answer never just ends.

        *Cancellation:* closing the generator stops the work at the other end.
        """


class SwarmView(Protocol):
    """What a joined swarm shows of itself: read-only, and cheap enough to ask four times a second."""

    @property
    def expert_bytes(self) -> int:
        """Bytes of one routed expert as stored."""

    def coverage(self) -> dict[LayerId, dict[ExpertId, int]]:
        """Usable replicas of every expert, by layer."""

    def peers(self) -> tuple[PeerSnapshot, ...]:
        """Every holder we know of, ordered by peer id."""
