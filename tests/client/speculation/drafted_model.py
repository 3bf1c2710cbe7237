"""A small model with an MTP layer, in one process, and engines on it that draft: for the tests beside this file."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from shoal.client.engine.constraint import TokenConstraint
from shoal.client.engine.engine_settings import EngineSettings
from shoal.client.engine.generate import Engine, Token
from shoal.client.engine.sampler import Sampling
from shoal.client.speculation.drafter import Drafter
from shoal.client.text.tokenizer import Tokenizer
from shoal.client.trunk.local_experts import LocalExperts
from shoal.client.trunk.model import Timing, Trunk
from shoal.client.trunk.moe import RoutedExperts
from shoal.experts.store import ModelStore
from shoal.protocol.events import Event
from tests.checkpoints import SHAPES
from tests.client.text.tiny_tokenizer import CONFIG, train

VOCABULARY = train()
SHAPE = replace(SHAPES["ragged_fp8_mtp_sharded"], vocab_size=VOCABULARY.get_vocab_size(), max_positions=400)
LOGPROB_BOUND = 1e-4
"""As in tests/client/engine/test_batching.py."""
PROMPT = (5, 17, 300, 2)


@dataclass(frozen=True)
class Model:
    """One trunk for all tests."""

    store: ModelStore
    trunk: Trunk
    experts: LocalExperts

    def engine(
        self,
        drafter: Drafter | None = None,
        width: int = 4,
        experts: RoutedExperts | None = None,
        kv_cache_bytes: int = 2**30,
        events: list[Event] | None = None,
        decode_groups: int | None = None,
        depth: int | None = None,
    ) -> Engine:
        timing = Timing(0, lambda: 0.0, (events if events is not None else []).append)
        tokenizer = Tokenizer(VOCABULARY.to_str().encode(), CONFIG)
        limits = EngineSettings(
            kv_cache_bytes=kv_cache_bytes, draft_width=width, draft_depth=depth, decode_groups=decode_groups
        )
        return Engine(
            self.trunk, experts or self.experts, tokenizer, lambda: 7, settings=limits, timing=timing, drafter=drafter
        )


async def stream(
    engine: Engine, prompt: Sequence[int], sampling: Sampling, grammar: TokenConstraint | None = None
) -> list[Token]:
    async with aclosing(engine.stream(prompt, sampling, grammar)) as tokens:
        return [token async for token in tokens]


GREEDY = Sampling(max_tokens=13, ignore_eos=True)
