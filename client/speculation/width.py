"""How many drafts a stream should have verified: a pure function of what was measured.

Leviathan et al., "Fast Inference from Transformers via Speculative Decoding" (ICML 2023, arXiv 2211.17192) §3.1 for the
tokens that a pass is expected to bring; the time of a pass is measured instead of modelled, so that round trips, the
holders that more rows touch, and what kernels and links take are all in it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

MAX_WIDTH = 6
"""Drafts of one stream in one pass. The demonstration model's sixth one is right once in twenty times."""

MARGIN = 1.1
"""How much faster drafting must promise to be: less than that is noise, and drafts cost energy and other people's
kernels."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the choice depends on."""

    num_streams: int
    """Streams that decode."""
    pass_s: Callable[[int], float]
    """Seconds of a pass by its rows."""
    draft_s: Callable[[int], float]
    """Seconds that it takes to make so many drafts for each stream."""
    acceptance: Sequence[float]
    """Chance that at least the first i + 1 drafts are all right: never rising, one for each width to choose from."""


def best_width(measured: Measured, max_rows: int) -> int:
    """The width with the most tokens per second; 0 where drafting does not pay. max_rows: of one pass."""
    widths = [k for k in range(1, len(measured.acceptance) + 1) if measured.num_streams * (1 + k) <= max_rows]
    best = max(widths, key=lambda width: tokens_per_s(measured, width), default=0)
    return best if best and gain(measured, best) > MARGIN else 0


def gain(measured: Measured, width: int) -> float:
    """How many times the tokens per second without drafts a width is expected to bring."""
    return tokens_per_s(measured, width) / max(tokens_per_s(measured, 0), 1e-9)


def tokens_per_s(measured: Measured, width: int) -> float:
    """What one stream is expected to get at some width."""
    tokens = 1 + sum(measured.acceptance[:width])
    seconds = measured.pass_s(measured.num_streams * (1 + width)) + measured.draft_s(width)
    return tokens / max(seconds, 1e-9)
