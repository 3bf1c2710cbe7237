"""The compressed KV cache of one sequence: what attention remembers, `kv_lora_rank + qk_rope_head_dim` values a token.

DeepSeek-V3 keeps 576 values per token and layer (68.6 KiB in bf16 over 61 layers) where plain attention would keep
32,768. Knows layers and positions; knows no tokens and no attention.
"""

import torch
from torch import Tensor

from shoal.protocol.errors import ContextLengthExceeded, InvalidRequest
from shoal.protocol.ids import LayerId

INITIAL_CAPACITY = 256
"""Tokens a layer has room for at first (one prefill chunk); doubled when full."""


class LatentCache:
    """Rows of latents for a span of layers.

    A pass writes the new tokens' rows layer by layer and then commits them, so that a pass which fails or is cancelled
    leaves the cache as it was: the same tokens may simply be run again.
    """

    def __init__(self, layers: range, width: int, dtype: torch.dtype, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._num_tokens = 0
        self._rows = {LayerId(layer): torch.empty(0, width, dtype=dtype) for layer in layers}

    @property
    def num_tokens(self) -> int:
        """Committed tokens: the position of the next one."""
        return self._num_tokens

    def write(self, layer: LayerId, new: Tensor) -> Tensor:
        """Put new: dtype[T, W] after the committed rows of a layer and return all: dtype[num_tokens + T, W], a view.

        Raises:
            ContextLengthExceeded: more than `max_tokens` tokens.
        """
        end = self._num_tokens + len(new)
        if end > self.max_tokens:
            raise ContextLengthExceeded(end, self.max_tokens)
        rows = self._grown(layer, end)
        rows[self._num_tokens : end] = new
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

    def _grown(self, layer: LayerId, num_rows: int) -> Tensor:
        rows = self._rows[layer]
        if num_rows > len(rows):
            capacity = min(max(2 * len(rows), num_rows, INITIAL_CAPACITY), self.max_tokens)
            grown = rows.new_empty(capacity, rows.shape[1])
            grown[: self._num_tokens] = rows[: self._num_tokens]
            self._rows[layer] = rows = grown
        return rows
