"""Hidden states to bytes and back. The one module of `protocol` that knows torch.

Dense, named dtype, finite, of exactly the size the header implies (R5). No pickle, no compression.
"""

from dataclasses import dataclass

import torch
from blake3 import blake3

from shoal.protocol.errors import Malformed, NonFinite
from shoal.protocol.frames import Buffer
from shoal.protocol.messages import Dispatch, DType, Partial
from shoal.protocol.version import REQUEST_HASH_CONTEXT

TORCH_DTYPES = {DType.F32: torch.float32, DType.BF16: torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Rows:
    """What a DISPATCH body says: which rows of `x` go to which expert with which weight.

    x: dtype[T, H] · row_idx: i64[P], grouped by expert in the order of `Dispatch.experts` · topk_weights: f32[P] ·
    offsets: the P-range of expert i is offsets[i]:offsets[i + 1].
    """

    x: torch.Tensor
    row_idx: torch.Tensor
    topk_weights: torch.Tensor
    offsets: tuple[int, ...]


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The little-endian bytes of a contiguous CPU tensor, without a copy."""
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    return flat.numpy().data


def dispatch_body(x: torch.Tensor, row_idx: torch.Tensor, topk_weights: torch.Tensor) -> bytes:
    """Encode a DISPATCH body. x: f32|bf16[T, H]; row_idx: i64[P]; topk_weights: f32[P]."""
    indices = row_idx.to(torch.int32).to(torch.uint16)
    return b"".join((tensor_bytes(x), tensor_bytes(topk_weights.to(torch.float32)), tensor_bytes(indices)))


def read_dispatch_body(message: Dispatch, body: Buffer) -> Rows:
    """Decode and check a DISPATCH body.

    Raises:
        Malformed: a row index out of range, or a body of the wrong size.
        NonFinite: NaN or infinity in hidden states or weights.
    """
    if len(body) != message.body_size():
        raise Malformed(f"a body of {len(body)} bytes instead of {message.body_size()}")
    dtype = TORCH_DTYPES[DType(message.dtype)]
    data = bytearray(body)  # torch wants a writable buffer of its own
    num_values, num_pairs = message.num_tokens * message.hidden, message.num_pairs
    weights_at = num_values * dtype.itemsize
    x = torch.frombuffer(data, dtype=dtype, count=num_values).view(message.num_tokens, message.hidden)
    topk_weights = torch.frombuffer(data, dtype=torch.float32, count=num_pairs, offset=weights_at)
    row_idx = torch.frombuffer(data, dtype=torch.uint16, count=num_pairs, offset=weights_at + 4 * num_pairs)
    row_idx = row_idx.to(torch.int64)
    if int(row_idx.max()) >= message.num_tokens:
        raise Malformed("a row index beyond the tokens of the frame")
    _check_finite(x)
    _check_finite(topk_weights)
    return Rows(x, row_idx, topk_weights, _offsets(message.num_rows))


def read_partial_body(message: Partial, body: Buffer) -> torch.Tensor:
    """Decode and check a PARTIAL body: f32[T, H], finite."""
    if len(body) != message.body_size():
        raise Malformed(f"a body of {len(body)} bytes instead of {message.body_size()}")
    partial = torch.frombuffer(bytearray(body), dtype=torch.float32).view(message.num_tokens, message.hidden)
    _check_finite(partial)
    return partial


def request_hash(header: bytes, *body: Buffer) -> bytes:
    """BLAKE3-256 of a request: its body (in pieces), its header, the header's length; its PARTIAL must carry it (R8).

    The body comes first because BLAKE3 works on aligned blocks: 5 us for 14 KiB, and 9 us behind a header of 60 bytes.
    """
    hasher = blake3(derive_key_context=REQUEST_HASH_CONTEXT)
    for piece in body:
        hasher.update(piece)
    return hasher.update(header + len(header).to_bytes(2, "big")).digest()


def _offsets(num_rows: tuple[int, ...]) -> tuple[int, ...]:
    offsets = [0]
    for count in num_rows:
        offsets.append(offsets[-1] + count)
    return tuple(offsets)


def _check_finite(tensor: torch.Tensor) -> None:
    # a sum is finite only if (nearly always) every term is; the exact check runs when it is not
    if not bool(torch.isfinite(tensor.float().sum())) and not bool(torch.isfinite(tensor).all()):
        raise NonFinite("NaN or infinity in a tensor")
