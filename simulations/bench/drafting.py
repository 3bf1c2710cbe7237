"""One answer after another, by engines without drafts and with: what the benchmarks of one stream have in common.

Answers continue held-out stories; the passes of an engine that drafts are counted by an observer of its own.
"""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter

from shoal.client.engine.generate import Engine, Token
from shoal.client.engine.sampler import Sampling
from shoal.client.text.tokenizer import Tokenizer
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.events import Event, PassTaken
from shoal.simulations.demo_model.held_out import held_out_stories


@dataclass(frozen=True, slots=True)
class Run:
    """One answer."""

    tokens: Sequence[Token]
    times_s: Sequence[float]
    """When each came."""

    @property
    def seconds(self) -> float:
        """From the first token to the last."""
        return self.times_s[-1] - self.times_s[0]

    @property
    def tokens_per_s(self) -> float:
        return (len(self.tokens) - 1) / self.seconds

    @property
    def token_ms(self) -> float:
        """A token's time on average: what most tokens do not meet, a lost packet, is in it."""
        return 1000 / self.tokens_per_s

    @property
    def gaps_ms(self) -> list[float]:
        """Between one token and the next."""
        return [1000 * (later - earlier) for earlier, later in pairwise(self.times_s)]

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    @property
    def num_runs(self) -> int:
        """Passes, those that followed another one counted with it: each brought one token that no draft had named."""
        return sum(not token.was_drafted for token in self.tokens)

    @property
    def num_drafted(self) -> int:
        return sum(token.num_drafted for token in self.tokens)

    @property
    def num_accepted(self) -> int:
        return sum(token.was_drafted for token in self.tokens)


@dataclass(slots=True)
class PassCount:
    """Observes an engine: its passes in which somebody decoded, and what of them was thrown away."""

    num_passes: int = 0
    """Those that were judged."""
    num_void: int = 0
    """Rows of those that were not."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, PassTaken) and event.num_decoding:
            self.num_passes += 1
            self.num_void += event.num_void

    def clear(self) -> None:
        self.num_passes = self.num_void = 0


@dataclass(frozen=True, slots=True)
class Story:
    """What is continued, and how."""

    prompt: Sequence[int]
    num_tokens: int
    temperature: float = 0.0
    seed: int = 0


async def continued(engine: Engine, story: Story) -> Run:
    """One answer of exactly so many tokens. Raises as `Engine.stream`."""
    sampling = Sampling(
        temperature=story.temperature, seed=story.seed, max_tokens=story.num_tokens, ignore_eos=True
    )  # fmt: skip
    tokens, times_s = list[Token](), list[float]()
    async with aclosing(engine.stream(story.prompt, sampling)) as stream:
        async for token in stream:
            tokens.append(token)
            times_s.append(perf_counter())
    return Run(tokens, times_s)


def story_prompts(tokenizer: Tokenizer | None, count: int, num_tokens: int, repeats: bool = False) -> list[list[int]]:
    """Beginnings of held-out stories. repeats: twice over and half of it again, text that can be guessed.

    Raises:
        InvalidRequest: the model has no tokenizer, or there are no so many stories.
    """
    if tokenizer is None:
        raise InvalidRequest("the model has no tokenizer")
    stories = [tokenizer.encode(story.plain)[:num_tokens] for story in held_out_stories()]
    if len(stories) < count:
        raise InvalidRequest(f"{count} stories asked for, {len(stories)} are there")
    if repeats:
        stories = [2 * story + story[: num_tokens // 2] for story in stories]
    return stories[:count]
