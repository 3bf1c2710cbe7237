"""Hidden states to bytes and back. The one module of `protocol` that knows torch.

Dense, named dtype, finite, of exactly the size the header implies (R5). No pickle. What a row costs and what it loses
in each format: docs/adr/0029. Every row is encoded by itself, so the rows of a frame may be chosen after encoding.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from blake3 import blake3

from shoal.protocol.dtypes import BLOCK, row_bytes
from shoal.protocol.errors import InvalidRequest, Malformed, NonFinite
from shoal.protocol.frames import Buffer
from shoal.protocol.messages import Dispatch, DType, Partial, Rounding
from shoal.protocol.version import REQUEST_HASH_CONTEXT

TORCH_DTYPES = {DType.F32: torch.float32, DType.BF16: torch.bfloat16}

LARGEST = 2.0**127
"""Inexact formats write what is further from 0 as this: half of fp32's greatest, so that no rounding passes that."""

FP8_LARGEST_FRACTION, FP8_LARGEST_EXPONENT = 0.875, 9
"""448 = 0.875 x 2^9, the greatest e4m3 number (arXiv 2209.05433 table 1)."""

EXPONENT_BIAS, MIN_EXPONENT = 127, -126
"""Of UE8M0 and of fp32 alike (OCP Microscaling Formats 1.0 §5.4.1); smaller scales are not used."""

MIN_SCALE_BITS, MAX_SCALE_BITS = 0x0080, 0x7F7F
"""A bf16 scale: positive, normal, finite."""

INT8_LARGEST = 127

FEW_PAIRS = 64
"""Up to here plain Python looks at indices and weights: in a process that was just woken 4 us, numpy takes 11."""

ROWS_IN_CACHE = 16
"""Rows that are converted together: a dozen passes over more than that (450 KB of DeepSeek-V3's) go through memory."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What a DISPATCH body says: which rows of `x` go to which expert with which weight.

    x: f32|bf16[T, H], as the rounding wants it · row_idx: i64[P], grouped by expert in the order of `Dispatch.experts`
    · topk_weights: f32[P] · offsets: the P-range of expert i is offsets[i]:offsets[i + 1].
    """

    x: torch.Tensor
    row_idx: torch.Tensor
    topk_weights: torch.Tensor
    offsets: tuple[int, ...]


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The little-endian bytes of a contiguous CPU tensor, without a copy."""
    known = tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor  # numpy has no bf16
    return known.numpy().reshape(-1).view(np.uint8).data


def encode_rows(x: torch.Tensor, dtype: DType) -> torch.Tensor:
    """Rows as they are sent. x: f32|bf16[T, H]; returns f32|bf16[T, H] or, of fp8 and int8, u8[T, row bytes].

    Error of a value v in a block whose largest is A: bf16 2^-8 |v|; fp8 max(2^-4 |v|, 2^-17 A); int8 A / 252.

    Raises:
        InvalidRequest: NaN, where a scale is made of it. Whoever sends checks before: bf16 takes NaN along.
    """
    if dtype is DType.F32:
        return x.to(torch.float32)
    if dtype is DType.BF16:
        return x if x.dtype is torch.bfloat16 else x.clamp(-LARGEST, LARGEST).to(torch.bfloat16)
    parts = [_encode_blocks(part, dtype) for part in torch.split(x, ROWS_IN_CACHE)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def decode_rows(data: Buffer, dtype: DType, num_rows: int, hidden: int) -> torch.Tensor:
    """The inverse of `encode_rows`: f32[T, H], or bf16[T, H] of bf16. `data`: exactly the rows' bytes; if they can be
    written to, the tensor may lie on them.

    Raises:
        Malformed: a scale or value that no encoder writes. NonFinite: NaN or infinity.
    """
    if dtype in TORCH_DTYPES:
        x = torch.frombuffer(_writable(data), dtype=TORCH_DTYPES[dtype]).view(num_rows, hidden)
    else:
        raw = torch.frombuffer(_writable(data), dtype=torch.uint8)
        decode = _from_fp8 if dtype is DType.FP8 else _from_int8
        rows = torch.split(raw.view(num_rows, row_bytes(dtype, hidden)), ROWS_IN_CACHE)
        parts = [
            decode(part[:, :hidden], part[:, hidden:].clone(memory_format=torch.contiguous_format)) for part in rows
        ]
        x = parts[0] if len(parts) == 1 else torch.cat(parts)
    _check_finite(x)
    return x


def dispatch_body(x: torch.Tensor, row_idx: torch.Tensor, topk_weights: torch.Tensor) -> bytes:
    """Encode a DISPATCH body. x: what `encode_rows` gave; row_idx: i64[P]; topk_weights: f32[P]."""
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
    num_pairs = message.num_pairs
    weights_at = message.num_tokens * row_bytes(message.dtype, message.hidden)
    x = decode_rows(memoryview(body)[:weights_at], DType(message.dtype), message.num_tokens, message.hidden)
    topk_weights = np.frombuffer(body, dtype="<f4", count=num_pairs, offset=weights_at).copy()
    row_idx = np.frombuffer(body, dtype="<u2", count=num_pairs, offset=weights_at + 4 * num_pairs).astype(np.int64)
    is_few = num_pairs <= FEW_PAIRS
    if (max(row_idx.tolist()) if is_few else row_idx.max()) >= message.num_tokens:
        raise Malformed("a row index beyond the tokens of the frame")
    if not (all(map(math.isfinite, topk_weights.tolist())) if is_few else np.isfinite(topk_weights).all()):
        raise NonFinite("NaN or infinity in a tensor")
    wanted = DType.BF16 if message.rounding == Rounding.BF16 else DType.F32
    if message.dtype not in (wanted, DType.F32):
        x = x.to(TORCH_DTYPES[wanted])
    return Rows(x, torch.from_numpy(row_idx), torch.from_numpy(topk_weights), _offsets(message.num_rows))


def read_partial_body(message: Partial, body: Buffer) -> torch.Tensor:
    """Decode and check a PARTIAL body: f32[T, H], finite."""
    if len(body) != message.body_size():
        raise Malformed(f"a body of {len(body)} bytes instead of {message.body_size()}")
    dtype = DType(message.dtype or DType.F32)
    values = decode_rows(body, dtype, message.num_tokens, message.hidden)
    return values if dtype is DType.F32 else values.to(torch.float32)


def request_hash(header: bytes, *body: Buffer) -> bytes:
    """BLAKE3-256 of a request: its body (in pieces), its header, the header's length; its PARTIAL must carry it (R8).

    The body comes first because BLAKE3 works on aligned blocks: 5 us for 14 KiB, and 9 us behind a header of 60 bytes.
    """
    hasher = blake3(derive_key_context=REQUEST_HASH_CONTEXT)
    for piece in body:
        hasher.update(piece)
    return hasher.update(header + len(header).to_bytes(2, "big")).digest()


def _encode_blocks(x: torch.Tensor, dtype: DType) -> torch.Tensor:
    """u8[T, row bytes] of a few rows: all values, then all scales."""
    blocks = _in_blocks(x.to(torch.float32).clamp(-LARGEST, LARGEST))
    largest = blocks.abs().amax(-1)
    if not bool(torch.isfinite(largest).all()):
        raise InvalidRequest("hidden states that are not finite can not be sent")
    values, scales = (_to_fp8 if dtype is DType.FP8 else _to_int8)(blocks, largest)
    return torch.cat([values.flatten(1)[:, : x.shape[1]], scales], 1)


def _in_blocks(x: torch.Tensor) -> torch.Tensor:
    """f32[T, H] as f32[T, blocks, 128]; zeros fill the last block up."""
    missing = -x.shape[1] % BLOCK
    return (torch.nn.functional.pad(x, (0, missing)) if missing else x).view(x.shape[0], -1, BLOCK)


def _to_fp8(blocks: torch.Tensor, largest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values u8[T, blocks, 128] and scales u8[T, blocks]: the smallest power of two that keeps the largest <= 448."""
    fraction, exponent = torch.frexp(largest)
    exponent = exponent.to(torch.int32) - FP8_LARGEST_EXPONENT + (fraction > FP8_LARGEST_FRACTION)
    exponent = exponent.clamp(MIN_EXPONENT)
    values = (blocks * _power_of_two(-exponent).unsqueeze(-1)).to(torch.float8_e4m3fn)
    return values.view(torch.uint8), (exponent + EXPONENT_BIAS).to(torch.uint8)


def _from_fp8(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """An e4m3 number is an fp32 number with its bits moved, times 2^120 (the biases are 7 and 127)."""
    if not 0 < int(scales.min()) <= int(scales.max()) < 255:
        raise Malformed("a scale of an fp8 block that no encoder writes")
    bits = values.to(torch.int32)
    magnitude = bits & 0x7F
    if int(magnitude.max()) == 0x7F:
        raise NonFinite("NaN in a tensor")
    numbers = (((bits & 0x80) << 24) | (magnitude << 20)).view(torch.float32).mul_(2.0**120)
    return _times(numbers, _power_of_two(scales.to(torch.int32) - EXPONENT_BIAS))


def _to_int8(blocks: torch.Tensor, largest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values u8[T, blocks, 128] and scales u8[T, 2 x blocks]: bf16(largest / 127), rounded up so that all fit."""
    bits = (largest / INT8_LARGEST).view(torch.int32)
    scale_bits = ((bits + 0xFFFF) >> 16).clamp(MIN_SCALE_BITS)
    scales = (scale_bits << 16).view(torch.float32)
    values = torch.round(blocks / scales.unsqueeze(-1)).to(torch.int8)  # half to even
    return values.view(torch.uint8), scale_bits.to(torch.int16).view(torch.uint8).view(largest.shape[0], -1)


def _from_int8(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    scale_bits = scales.view(torch.int16)  # a negative scale is a negative number here, too
    if not MIN_SCALE_BITS <= int(scale_bits.min()) <= int(scale_bits.max()) <= MAX_SCALE_BITS:
        raise Malformed("a scale of an int8 block that no encoder writes")
    numbers = values.contiguous().view(torch.int8)
    if int(numbers.min()) < -INT8_LARGEST:
        raise Malformed("a value of an int8 block that no encoder writes")
    return _times(numbers.to(torch.float32), scales.view(torch.bfloat16).to(torch.float32))


def _times(numbers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Each block of f32[T, H] by its scale."""
    num_rows, hidden = numbers.shape
    if hidden % BLOCK == 0:
        return numbers.view(num_rows, -1, BLOCK).mul_(scales.unsqueeze(-1)).view(num_rows, hidden)
    return numbers.mul_(scales.repeat_interleave(BLOCK, 1)[:, :hidden])


def _power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """2^e in fp32, exactly, of i32 in -126..127."""
    return ((exponent + EXPONENT_BIAS) << 23).view(torch.float32)


def _offsets(num_rows: tuple[int, ...]) -> tuple[int, ...]:
    offsets = [0]
    for count in num_rows:
        offsets.append(offsets[-1] + count)
    return tuple(offsets)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether there is no NaN and no infinity in it. Costs 2 us for a row of 7,168, an eighth of looking at each."""
    # a sum is finite only if (nearly always) every term is; the exact check runs when it is not
    return math.isfinite(tensor.sum(dtype=torch.float32).item()) or bool(torch.isfinite(tensor).all())


def _check_finite(tensor: torch.Tensor) -> None:
    if not is_finite(tensor):
        raise NonFinite("NaN or infinity in a tensor")


def _writable(data: Buffer) -> memoryview:
    """Bytes that torch takes: it wants to be able to write to them. A frame that came in parts lies in a buffer of its
    own already, one that came whole is a view of what the socket gave."""
    view = memoryview(data)
    return memoryview(bytearray(view)) if view.readonly else view
