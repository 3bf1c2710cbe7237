"""The compressed KV cache of one sequence: what attention remembers, `kv_lora_rank + qk_rope_head_dim` values a token.

DeepSeek-V3 keeps 576 values per token and layer (68.6 KiB in bf16 over 61 layers) where plain attention would keep
32,768. Knows layers and positions; knows no tokens and no attention.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.protocol.errors import ContextLengthExceeded, InvalidRequest
from shoal.protocol.ids import LayerId

INITIAL_CAPACITY = 256
"""Tokens a layer has room for at first (one prefill chunk); doubled when full."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The next `count` rows of a pass belong to the sequence of this cache."""

    count: int
    cache: "LatentCache"
    is_one_by_one: bool = False
    """Whether attention takes each of them by itself, in the shapes of a pass that brings one token: the same bits as
    then. For drafts, whose verification must say what decoding would have said."""
    at: int | None = None
    """The position of the first of them, where tokens before it are still under way and the cache does not count them
    yet (`wavefront.py`, `line.py`). None: they come after what the cache holds."""

    @property
    def start(self) -> int:
        """The position of the first of them."""
        return self.cache.num_tokens if self.at is None else self.at


class LatentCache:
    """Rows of latents for a span of layers.

    A pass writes the new tokens' rows layer by layer and then commits them, so that a pass which fails or is cancelled
    leaves the cache as it was: the same tokens may simply be run again.
    """

    def __init__(
        self, layers: range, width: int, dtype: torch.dtype, max_tokens: int, room: int = INITIAL_CAPACITY
    ) -> None:
        """room: tokens that it takes before it grows."""
        self.max_tokens = max_tokens
        self._room = max(room, INITIAL_CAPACITY)
        self._row_bytes = width * dtype.itemsize
        self._num_tokens = 0
        self._rows = {LayerId(layer): torch.empty(0, width, dtype=dtype) for layer in layers}

    @property
    def num_tokens(self) -> int:
        """Committed tokens: the position of the next one."""
        return self._num_tokens

    @property
    def size_bytes(self) -> int:
        """Memory that it takes now."""
        return sum(rows.nbytes for rows in self._rows.values())

    def size_bytes_at(self, num_tokens: int) -> int:
        """Memory that it will take when it has grown to so many tokens.

        Layers grow one after another within a pass, the first one first: none is larger than that.
        """
        first = next(iter(self._rows.values()))
        return len(self._rows) * self._capacity(first, num_tokens) * self._row_bytes

    def write(self, layer: LayerId, new: Tensor, start: int | None = None) -> Tensor:
        """Put new: dtype[T, W] into a layer at position `start`, before which all rows are written; None: after the
        committed ones.

        Returns all up to there: dtype[start + T, W], a view.

        Raises:
            ContextLengthExceeded: more than `max_tokens` tokens.
        """
        start = self._num_tokens if start is None else start
        end = start + len(new)
        if end > self.max_tokens:
            raise ContextLengthExceeded(end, self.max_tokens)
        rows = self._grown(layer, end, start)
        rows[start:end] = new
        return rows[:end]

    def commit(self, num_new: int) -> None:
        """Count the rows that a whole pass has written."""
        self._num_tokens += num_new

    def truncate(self, length: int) -> None:
        """Forget every token from position `length` on (rejected drafts).

        Raises:
            InvalidRequest: the cache is shorter than that.
        """
        if not 0 <= length <= self._num_tokens:
            raise InvalidRequest(f"cannot truncate a cache of {self._num_tokens} tokens to {length}")
        self._num_tokens = length

    def _grown(self, layer: LayerId, num_rows: int, num_kept: int) -> Tensor:
        rows = self._rows[layer]
        capacity = self._capacity(rows, num_rows)
        if capacity > len(rows):
            grown = rows.new_empty(capacity, rows.shape[1])
            grown[:num_kept] = rows[:num_kept]
            self._rows[layer] = rows = grown
        return rows

    def _capacity(self, rows: Tensor, num_rows: int) -> int:
        """Rows that a layer has room for once it holds `num_rows`."""
        if num_rows <= len(rows):
            return len(rows)
        return min(max(2 * len(rows), num_rows, self._room), self.max_tokens)


def commit(rows: Iterable[Rows]) -> None:
    """Count the rows that a whole pass has written, in every cache it wrote to."""
    for some in rows:
        some.cache.commit(some.count)
