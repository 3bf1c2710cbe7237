"""The seam between the gateway and a model: what the API asks of it. `SwarmModel` is the real one."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from shoal.client.engine.constraint import TokenConstraint
from shoal.client.engine.generate import Token
from shoal.client.engine.logprobs import TokenScore
from shoal.client.engine.sampler import Sampling
from shoal.client.swarm import Swarm
from shoal.client.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of the model the swarm holds."""

    num_experts: int
    """Of all layers together."""
    num_missing: int
    """Without a usable holder."""
    first_missing: tuple[int, int] | None
    """(layer, expert)."""
    min_replicas: int

    @property
    def ratio(self) -> float:
        """0..1; a model without routed experts is whole."""
        return 1 - self.num_missing / self.num_experts if self.num_experts else 1.0


class Model(Protocol):
    """A model that generates."""

    @property
    def root(self) -> str:
        """Hex of the manifest root: which weights these are."""

    @property
    def vocab_size(self) -> int:
        """Width of its logits."""

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and answer together."""

    @property
    def end_token_ids(self) -> Sequence[int]:
        """Tokens that end an answer."""

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    def check(self, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        """Refuse now, with InvalidRequest or ContextLengthExceeded, what `stream` would refuse."""

    def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, constraint: TokenConstraint | None = None
    ) -> AsyncGenerator[Token, None]:
        """As `Swarm.stream`."""

    async def score(self, prompt_ids: Sequence[int], top_logprobs: int = 0) -> list[TokenScore]:
        """As `Swarm.score`."""

    def coverage(self) -> Coverage:
        """What the swarm holds now; from memory."""


class SwarmModel:
    """A joined swarm behind the seam."""

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self._engine = swarm.engine

    @property
    def root(self) -> str:
        return self._swarm.model_root

    @property
    def vocab_size(self) -> int:
        return self._engine.trunk.config.vocab_size

    @property
    def max_model_len(self) -> int:
        return self._engine.trunk.config.max_position_embeddings

    @property
    def end_token_ids(self) -> Sequence[int]:
        of_tokenizer = self._engine.tokenizer.end_token_ids if self._engine.tokenizer else ()
        return sorted({*self._engine.trunk.config.eos_token_ids, *of_tokenizer})

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._engine.tokenizer

    def check(self, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        self._engine.check(prompt_ids, sampling)

    def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, constraint: TokenConstraint | None = None
    ) -> AsyncGenerator[Token, None]:
        return self._swarm.stream(prompt_ids, sampling, constraint)

    async def score(self, prompt_ids: Sequence[int], top_logprobs: int = 0) -> list[TokenScore]:
        return await self._swarm.score(prompt_ids, top_logprobs)

    def coverage(self) -> Coverage:
        replicas = [
            (layer, expert, count)
            for layer, counts in self._swarm.coverage().items()
            for expert, count in counts.items()
        ]
        missing = [(int(layer), int(expert)) for layer, expert, count in replicas if count == 0]
        fewest = min((count for _, _, count in replicas), default=1)
        return Coverage(len(replicas), len(missing), missing[0] if missing else None, fewest)
