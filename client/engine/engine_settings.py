"""How much one client does at a time: one frozen object, made by whoever opens the model."""

from dataclasses import dataclass

from shoal.protocol.errors import InvalidRequest
from shoal.protocol.limits import MAX_TOKENS_PER_FRAME

PREFILL_CHUNK = 256
"""Prompt tokens per forward pass: half of `limits.MAX_TOKENS_PER_FRAME`, so that a frame stays at 7 MB for DeepSeek-V3
and a decode step of another stream waits for no more than that."""

CHUNKS_PER_PASS = 8
"""Chunks of prompts that a pass takes where nobody decodes: 2,048 tokens, whose hidden states are 29 MB for DeepSeek-V3
in bf16 until the pass ends. With more of them, filling and draining the pipeline is a smaller part of the time."""

PREFILL_AHEAD = 4
"""Chunks under way at a time. The exchange of a chunk takes about as long as three of them compute or cross the link
where the target is hardest, at 20 ms and 100 Mbit/s (docs/PERFORMANCE.md)."""

MAX_RUNNING = MAX_TOKENS_PER_FRAME - PREFILL_CHUNK
"""A pass has a row of every running stream and one chunk of a prompt, and all may go to one holder in one frame."""

MAX_DRAFT_WIDTH = 16
"""Drafts of a stream in one pass: beyond that even text that repeats itself gains little, and every one costs rows."""


MAX_DRAFT_DEPTH = 8
"""Passes of drafts under way at a time, each a frame of every holder in memory."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Limits of one engine.

    Raises:
        InvalidRequest: a value out of its range.
    """

    max_running: int = 32
    """Streams that share a pass, 1..256: total tokens/s still grow there (docs/LOG.md), and each one's do not halve."""
    max_waiting: int = 128
    """Streams that wait for a place; one more is refused with Busy. A few answers' time each, so minutes in all."""
    kv_cache_bytes: int = 4 * 2**30
    """Memory for the KV caches of all streams: 62,000 tokens of DeepSeek-V3 in bf16. A context that does not fit in it
    is refused."""
    draft_width: int | None = None
    """Drafts of each stream in a pass, where there is a drafter. None: as many as pay by what passes take and how often
    drafts are right; none where they do not pay."""

    draft_depth: int | None = None
    """Passes of drafts under way at a time where one stream decodes alone, each behind the last and thrown away at the
    first wrong draft, 1..8. None: as many as pay; 1: the next begins when the last has ended."""

    prefill_ahead: int = PREFILL_AHEAD
    """Parts of a pass that are under way at the same time, 1..8: while some wait for their experts, others compute. 1:
    one after another, a chunk of a prompt a pass. Each holds a frame of every holder in memory."""

    decode_groups: int | None = None
    """Groups of streams that decode, each with exchanges of its own, so that one computes while another waits; never
    more than `prefill_ahead`. None: as many as pay, found out by what passes take (docs/adr/0034-ping-pong.md)."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_running <= MAX_RUNNING:
            raise InvalidRequest(f"max_running is {self.max_running}, expected 1..{MAX_RUNNING}")
        if self.max_waiting < 0:
            raise InvalidRequest(f"max_waiting is {self.max_waiting}, expected >= 0")
        if self.kv_cache_bytes < 1:
            raise InvalidRequest(f"kv_cache_bytes is {self.kv_cache_bytes}, expected >= 1")
        if not 1 <= self.prefill_ahead <= CHUNKS_PER_PASS:
            raise InvalidRequest(f"prefill_ahead is {self.prefill_ahead}, expected 1..{CHUNKS_PER_PASS}")
        if self.decode_groups is not None and not 1 <= self.decode_groups <= CHUNKS_PER_PASS:
            raise InvalidRequest(f"decode_groups is {self.decode_groups}, expected 1..{CHUNKS_PER_PASS}")
        if self.draft_depth is not None and not 1 <= self.draft_depth <= MAX_DRAFT_DEPTH:
            raise InvalidRequest(f"draft_depth is {self.draft_depth}, expected 1..{MAX_DRAFT_DEPTH}")
        if self.draft_width is not None and not 0 <= self.draft_width <= MAX_DRAFT_WIDTH:
            raise InvalidRequest(f"draft_width is {self.draft_width}, expected 0..{MAX_DRAFT_WIDTH}")
