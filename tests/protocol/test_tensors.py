"""Tensors on the wire: the same numbers arrive, or an error does."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol.errors import Malformed, NonFinite
from shoal.protocol.frames import encode_header
from shoal.protocol.messages import Dispatch, DType, Partial
from shoal.protocol.tensors import (
    TORCH_DTYPES,
    dispatch_body,
    read_dispatch_body,
    read_partial_body,
    request_hash,
    tensor_bytes,
)

NUM_ROWS = (3, 1, 2)


def message(dtype: DType = DType.BF16, num_tokens: int = 3, hidden: int = 16) -> Dispatch:
    return Dispatch(bytes(32), 3, 1, 2, dtype, num_tokens, hidden, (4, 8, 9), NUM_ROWS, 1000)


def parts(dtype: DType = DType.BF16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 16, generator=generator).to(TORCH_DTYPES[dtype])
    return x, torch.tensor([0, 1, 2, 1, 0, 2]), torch.rand(6, generator=generator)


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
def test_a_dispatch_survives_the_wire_exactly(dtype):
    x, row_idx, topk_weights = parts(dtype)
    body = dispatch_body(x, row_idx, topk_weights)
    for received in (body, bytearray(body), memoryview(body)):
        rows = read_dispatch_body(message(dtype), received)
        assert torch.equal(rows.x, x)
        assert rows.x.dtype == TORCH_DTYPES[dtype]
        assert torch.equal(rows.row_idx, row_idx)
        assert torch.equal(rows.topk_weights, topk_weights)
        assert rows.offsets == (0, 3, 4, 6)


def test_a_transposed_tensor_is_sent_in_row_order():
    x, row_idx, topk_weights = parts(DType.F32)
    body = dispatch_body(x.T.contiguous().T, row_idx, topk_weights)
    assert torch.equal(read_dispatch_body(message(DType.F32), body).x, x)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=6, max_size=6))
def test_a_partial_survives_the_wire_exactly(values):
    partial = torch.tensor(values).view(2, 3)
    received = read_partial_body(Partial(bytes(32), 2, 3, 0, 0), tensor_bytes(partial))
    assert received.view(torch.int32).equal(partial.view(torch.int32))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", TORCH_DTYPES)
def test_what_is_not_finite_is_refused(dtype, value):
    x, row_idx, topk_weights = parts(dtype)
    x[1, 5] = value
    with pytest.raises(NonFinite):
        read_dispatch_body(message(dtype), dispatch_body(x, row_idx, topk_weights))
    x, row_idx, topk_weights = parts(dtype)
    topk_weights[3] = value
    with pytest.raises(NonFinite):
        read_dispatch_body(message(dtype), dispatch_body(x, row_idx, topk_weights))
    with pytest.raises(NonFinite):
        read_partial_body(Partial(bytes(32), 1, 2, 0, 0), tensor_bytes(torch.tensor([1.0, value])))


def test_infinities_that_cancel_and_large_finite_sums_are_told_apart():
    partial = Partial(bytes(32), 1, 2, 0, 0)
    with pytest.raises(NonFinite):
        read_partial_body(partial, tensor_bytes(torch.tensor([math.inf, -math.inf])))
    largest = torch.finfo(torch.float32).max
    assert read_partial_body(partial, tensor_bytes(torch.tensor([largest, largest]))).isfinite().all()


def test_a_row_beyond_the_tokens_is_malformed():
    x, row_idx, topk_weights = parts()
    row_idx[4] = 3
    with pytest.raises(Malformed, match="row index"):
        read_dispatch_body(message(), dispatch_body(x, row_idx, topk_weights))


def test_a_body_of_the_wrong_size_is_malformed():
    body = dispatch_body(*parts())
    for wrong in (body[:-1], body + b"\x00", b""):
        with pytest.raises(Malformed):
            read_dispatch_body(message(), wrong)
        with pytest.raises(Malformed):
            read_partial_body(Partial(bytes(32), 2, 3, 0, 0), wrong)


def test_a_requests_hash_covers_header_and_body_and_not_how_it_was_cut():
    header, body = encode_header(message()), dispatch_body(*parts())
    digest = request_hash(header, body)
    assert digest == request_hash(header, body[:7], body[7:])
    assert len({digest, request_hash(header, body + b"\x00"), request_hash(header + b"\x00", body)}) == 3
