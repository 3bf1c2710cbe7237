"""The header of a safetensors file, parsed as if an enemy had written it.

Bytes in, a table of tensors out. Knows no files and no models; `checkpoint.py` reads the bytes. The library's own
parser lets duplicate keys, shapes of a million dimensions and hundreds of thousands of empty tensors pass
(security-and-reliability, threat 17). Layout: u64 length, JSON `{name: {dtype, shape, data_offsets}}`, data.
Source: huggingface/safetensors, README "Format".
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn, TypeGuard

from shoal.protocol.errors import CheckpointError

LENGTH_BYTES = 8
"""The u64, little-endian, in front of the header."""

MAX_HEADER_BYTES = 32 * 1024 * 1024
"""Kimi K2's 140,000 tensors in a single file would take 18 MB; the format itself allows 100 MB."""

MAX_TENSORS = 262_144
"""Tensors of a file, or of an index; DeepSeek-V3 has 91,991 in all its 163 files."""

MAX_NAME_CHARACTERS = 512
"""A tensor's name; the longest of the known families has 70."""

MAX_RANK = 8
"""Dimensions of a tensor; weights have one to three."""

MAX_TENSOR_BYTES = 2**40
"""One tensor: a terabyte, more than a whole model; keeps every product below 2^63."""

METADATA_KEY = "__metadata__"

ITEM_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 1),
}
"""Element types and their sizes; the format's types of less than a byte are in no checkpoint that we can run."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor is: `begin` .. `begin + size_bytes` of the file's data, which starts behind the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    size_bytes: int


def parse_header(raw: bytes, data_bytes: int, file: str) -> dict[str, TensorEntry]:
    """Parse the JSON of a header. `data_bytes`: what follows it in the file. `file` is for messages only.

    Raises:
        CheckpointError: no object, a duplicate key, an unknown dtype, a shape or offsets out of bounds, a length that
            is not shape times dtype, or data that overlaps, leaves holes or does not end with the file.
    """
    entries = {}
    for name, value in parse_object(raw, file).items():
        if name == METADATA_KEY:
            _check_metadata(value, file)
        else:
            entries[name] = _entry(name, value, file)
    _check_layout(entries, data_bytes, file)
    return entries


def parse_object(raw: bytes, file: str) -> dict[str, object]:
    """Parse JSON that must be an object without duplicate keys, at any depth.

    Raises:
        CheckpointError: it is not, or it has more entries than a checkpoint has tensors.
    """
    if raw.count(b"{") > MAX_TENSORS + 2:  # before parsing, which takes 100 times the memory
        raise CheckpointError(file, None, f"more than {MAX_TENSORS} tensors")
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
    except _DuplicateKey as error:
        raise CheckpointError(file, printable(error.key), "named twice") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(file, None, f"not JSON: {error!s:.200}") from error
    if not isinstance(value, dict):
        raise CheckpointError(file, None, "not a JSON object")
    if len(value) > MAX_TENSORS + 1:
        raise CheckpointError(file, None, f"more than {MAX_TENSORS} entries")
    return value


def check_name(name: str, file: str) -> None:
    """Raises CheckpointError if a tensor's name is empty, over its limit or not printable."""
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
        raise CheckpointError(file, printable(name), f"a name of {len(name)} characters, or unprintable ones")


def printable(name: str) -> str:
    """A name as it may stand in a message: a file must not write to a terminal through our errors."""
    return name if len(name) <= MAX_NAME_CHARACTERS and name.isprintable() else ascii(name[:40])


class _DuplicateKey(Exception):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKey(key)
            seen.add(key)
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_metadata(value: object, file: str) -> None:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise CheckpointError(file, METADATA_KEY, "not an object of strings")


def _entry(name: str, value: object, file: str) -> TensorEntry:
    check_name(name, file)
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(file, name, "not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointError(file, name, f"unknown dtype {dtype!r:.40}")
    if not is_naturals(shape) or len(shape) > MAX_RANK:
        raise CheckpointError(file, name, f"shape {shape!r:.80} is not a list of at most {MAX_RANK} sizes")
    if not is_naturals(offsets) or len(offsets) != 2:
        raise CheckpointError(file, name, f"data_offsets {offsets!r:.80} are not two positions")
    begin, end = offsets
    size_bytes = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != size_bytes:
        raise CheckpointError(file, name, f"{end - begin} bytes of data, {dtype}{shape} has {size_bytes}")
    return TensorEntry(dtype, tuple(shape), begin, size_bytes)


def is_naturals(value: object) -> TypeGuard[list[int]]:
    """Whether it is a list of integers from zero to a terabyte."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_TENSOR_BYTES for item in value)


def _check_layout(entries: Mapping[str, TensorEntry], data_bytes: int, file: str) -> None:
    """The tensors, in file order, must follow each other without overlap or hole and end with the file."""
    position, name = 0, None
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].size_bytes)):
        if entry.begin != position:
            kind = "overlaps the one before" if entry.begin < position else "leaves a hole before it"
            raise CheckpointError(file, name, f"data at {entry.begin} {kind}, which ends at {position}")
        position += entry.size_bytes
    if position != data_bytes:
        kind = "truncated" if position > data_bytes else "with bytes that belong to no tensor"
        raise CheckpointError(file, name, f"{kind}: tensors end at {position}, the file's data at {data_bytes}")
