"""One stream's state on its way through the passes: its token ids, the KV cache of those that were run, its results.

Between `scheduler.py`, which decides whose tokens go into a pass, and the reader, who takes results when it likes.
Whatever is not in the cache is pending: a prompt, or the token that was chosen last. A sequence that loses its cache
is run again from its ids. Knows no trunk and no other sequence.
"""

import asyncio
from collections.abc import Sequence as Ids
from dataclasses import dataclass
from typing import Generic, TypeVar

from shoal.client.engine.generation import FinishReason, Token
from shoal.client.engine.logprobs import TokenScore
from shoal.client.engine.sampler import Sampled, Sampler
from shoal.client.text.answer_text import AnswerText
from shoal.client.trunk.kv_cache import LatentCache

MAX_UNREAD = 8
"""Results that wait for their reader: one that is slower than the model holds up itself and nobody else."""

Result = TypeVar("Result")


class Sequence(Generic[Result]):
    """What answers and scores have in common."""

    def __init__(self, prompt_ids: Ids[int], submitted_at: float) -> None:
        self.ids = list(prompt_ids)
        self.num_prompt_tokens = len(self.ids)
        self.cache: LatentCache | None = None
        """None while it waits for a place."""
        self.submitted_at = submitted_at
        self.admitted_at: float | None = None
        """When it first had a place."""
        self.last_turn = 0
        """The turn in which its prompt was last taken up."""
        self._results: asyncio.Queue[Result | Exception] = asyncio.Queue()

    @property
    def num_pending(self) -> int:
        """Tokens that have not been run."""
        return len(self.ids) - (self.cache.num_tokens if self.cache else 0)

    @property
    def is_decoding(self) -> bool:
        return self.num_pending == 1

    @property
    def max_drafts(self) -> int:
        """Drafts that a pass may verify for it: as many as it could use, were all of them right."""
        return 0

    @property
    def is_read(self) -> bool:
        """Whether its reader keeps up."""
        return self._results.qsize() < MAX_UNREAD

    def put(self, result: Result | Exception) -> None:
        """Hand a result to the reader; an exception is its last."""
        self._results.put_nowait(result)

    async def next(self) -> Result:
        """The next result. Raises the exception that ended the sequence."""
        result = await self._results.get()
        if isinstance(result, Exception):
            raise result
        return result


@dataclass(frozen=True, slots=True)
class Ending:
    """When an answer ends, besides its stop strings."""

    max_tokens: int
    end_ids: frozenset[int]
    """End-of-sequence tokens; each is the answer's last and has no text."""


class Answering(Sequence[Token]):
    """A prompt that is being continued."""

    def __init__(
        self, prompt_ids: Ids[int], sampler: Sampler, text: AnswerText, ending: Ending, submitted_at: float
    ) -> None:
        super().__init__(prompt_ids, submitted_at)
        self.sampler = sampler
        self._text = text
        self._ending = ending

    @property
    def end_ids(self) -> frozenset[int]:
        """End-of-sequence tokens: nothing is chosen after one."""
        return self._ending.end_ids

    @property
    def max_drafts(self) -> int:
        """See `Sequence`: a pass brings one token more than its drafts."""
        return self._ending.max_tokens - (len(self.ids) - self.num_prompt_tokens) - 1

    def take(self, sampled: Sampled, num_drafted: int = 0, was_drafted: bool = False) -> Token:
        """Continue by the token that was chosen. num_drafted, was_drafted: see `Token`."""
        index = len(self.ids) - self.num_prompt_tokens
        self.ids.append(sampled.token_id)
        is_end = sampled.token_id in self._ending.end_ids
        is_last = is_end or index + 1 == self._ending.max_tokens
        piece = "" if is_end else self._text.push(sampled.token_id)
        if is_last:
            piece += self._text.end()
        is_stopped = is_end or self._text.is_stopped
        reason = FinishReason.STOP if is_stopped else FinishReason.LENGTH if is_last else None
        return Token(
            sampled.token_id,
            piece,
            index,
            sampled.logprob,
            reason,
            sampled.top_logprobs,
            num_drafted=num_drafted,
            was_drafted=was_drafted,
        )


class Scoring(Sequence[list[TokenScore]]):
    """A prompt whose tokens are being scored. Its last token is scored and never run."""

    def __init__(self, prompt_ids: Ids[int], top_logprobs: int, submitted_at: float) -> None:
        super().__init__(prompt_ids[:-1], submitted_at)
        self.top_logprobs = top_logprobs
        self._last_id = prompt_ids[-1]

    def targets(self, start: int, count: int) -> list[int]:
        """The tokens that come after each of `count` tokens from position `start` on."""
        return [*self.ids, self._last_id][start + 1 : start + 1 + count]


AnySequence = Answering | Scoring
