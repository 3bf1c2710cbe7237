"""The cache keeps what was written, forgets what was rejected, and survives a pass that fails.

Run: pytest tests/client/trunk/test_kv_cache.py
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.client.trunk.kv_cache import INITIAL_CAPACITY, LatentCache
from shoal.protocol.errors import ContextLengthExceeded, InvalidRequest
from shoal.protocol.ids import LayerId

LAYERS = range(2, 4)
WIDTH = 3


def cache(max_tokens: int = 10_000) -> LatentCache:
    return LatentCache(LAYERS, WIDTH, torch.float32, max_tokens)


def rows(start: int, count: int) -> torch.Tensor:
    return torch.arange(start, start + count, dtype=torch.float32)[:, None].expand(-1, WIDTH)


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(0, 500)), max_size=8))
def test_rows_stay_as_written_through_growth_and_truncation(steps: list[tuple[int, int]]) -> None:
    kept, length = cache(), 0
    for num_new, num_rejected in steps:
        for layer in LAYERS:
            held = kept.write(LayerId(layer), rows(length, num_new) + layer)
            assert torch.equal(held, rows(0, length + num_new) + layer)
        kept.commit(num_new)
        length = max(0, length + num_new - num_rejected)
        kept.truncate(length)
        assert kept.num_tokens == length


def test_a_pass_that_was_not_committed_is_overwritten() -> None:
    kept = cache()
    kept.write(LayerId(2), rows(100, INITIAL_CAPACITY + 1))
    assert kept.num_tokens == 0
    assert torch.equal(kept.write(LayerId(2), rows(0, 2)), rows(0, 2))


def test_it_holds_no_more_than_the_context() -> None:
    kept = cache(max_tokens=5)
    kept.write(LayerId(2), rows(0, 5))
    kept.commit(5)
    with pytest.raises(ContextLengthExceeded) as caught:
        kept.write(LayerId(2), rows(5, 1))
    assert (caught.value.num_tokens, caught.value.limit) == (6, 5)


@pytest.mark.parametrize("length", [-1, 1])
def test_it_cannot_be_truncated_to_what_it_does_not_hold(length: int) -> None:
    with pytest.raises(InvalidRequest, match=str(length)):
        cache().truncate(length)
