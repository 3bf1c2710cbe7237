"""A piece's bytes: the canonical encodings of its tensors, one after another, exactly what its digest is the BLAKE3 of.

So a piece proves itself: `b3sum` of the file is its name. Layout of an encoding: `digest.py`. Reading is strict and
comes after the hash was checked; it defends against a manifest whose maker meant harm. Knows no files.
"""

import struct
from collections.abc import Iterable
from math import prod

import torch

from shoal.experts.checkpoint import TORCH_DTYPES, StoredTensor
from shoal.experts.digest import encode_head
from shoal.experts.safetensors_header import ITEM_BYTES, MAX_RANK, MAX_TENSOR_BYTES, check_name
from shoal.protocol.errors import CheckpointError

MAX_TENSORS_OF_A_PIECE = 16
"""fp8 experts have six; gpt-oss's, with biases, six."""


def encode_piece(tensors: Iterable[StoredTensor]) -> bytearray:
    """The bytes of a piece."""
    encoded = bytearray()
    for tensor in tensors:
        encoded += encode_head(tensor)
        encoded += tensor.raw
    return encoded


def decode_piece(raw: bytes | bytearray | memoryview, origin: str) -> tuple[StoredTensor, ...]:
    """The tensors of a piece; each has its own memory. `origin`: what errors and tensors call its file.

    Raises:
        CheckpointError: not such an encoding.
    """
    tensors: list[StoredTensor] = []
    view, position = memoryview(raw), 0
    try:
        while position < len(view):
            if len(tensors) == MAX_TENSORS_OF_A_PIECE:
                raise CheckpointError(origin, None, f"more than {MAX_TENSORS_OF_A_PIECE} tensors in a piece")
            tensor, position = _decode_tensor(view, position, origin)
            tensors.append(tensor)
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise CheckpointError(origin, None, f"not the encoding of a piece: {error}") from error
    if not tensors:
        raise CheckpointError(origin, None, "an empty piece")
    return tuple(tensors)


def _decode_tensor(view: memoryview, position: int, origin: str) -> tuple[StoredTensor, int]:
    (name_bytes,) = struct.unpack_from("<H", view, position)
    position += 2
    name = bytes(view[position : position + name_bytes]).decode("utf-8")
    position += name_bytes
    check_name(name, origin)
    dtype_bytes = view[position]
    dtype = bytes(view[position + 1 : position + 1 + dtype_bytes]).decode("ascii")
    position += 1 + dtype_bytes
    rank = view[position]
    if dtype not in ITEM_BYTES or rank > MAX_RANK:
        raise CheckpointError(origin, name, f"dtype {dtype!r:.40} with {rank} dimensions")
    *shape, size_bytes = struct.unpack_from(f"<{rank + 1}Q", view, position + 1)
    position += 1 + 8 * (rank + 1)
    if max(shape, default=0) > MAX_TENSOR_BYTES or prod(shape) * ITEM_BYTES[dtype] != size_bytes:
        raise CheckpointError(origin, name, f"{size_bytes} bytes for {dtype}{shape}")
    end = position + size_bytes
    if end > len(view):
        raise CheckpointError(origin, name, f"truncated: {len(view) - position} of {size_bytes} bytes")
    data = torch.empty(size_bytes, dtype=torch.uint8)
    data.numpy().data[:] = view[position:end]
    return StoredTensor(name, origin, dtype, data.view(TORCH_DTYPES[dtype]).view(tuple(shape))), end
