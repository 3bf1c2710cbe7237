"""Where every tensor of a published checkpoint is, in a file of 10 kB: `shoal.layout`, made beside the manifest.

DeepSeek-V3's index has 8.9 MB and its 163 headers 11.5 MB, read anew by everybody who fetches a part of it; what they
say is mostly one name 46,000 times with other numbers. Here names are patterns and numbers (`model.layers.#.mlp`),
sizes follow from shapes, and offsets from the order, for data in safetensors files is without holes.

A layout is a hint and needs no trust: what is read by it must hash to the manifest's digests, and if it does not, the
source's own index and headers are read (`places.py`). Bytes (PROTOCOL.md §7.5): `shoallt1`, then zlib of JSON
`{"kinds": [[pattern, dtype, shape]…], "files": [[name, data_start, [kind…], [first number…], [second number…]…]…]}`:
of each file its tensors' kinds, in the order of their data, and the numbers of their names, column by column (a tensor
whose pattern has one `#` is in the first only), which compress to a twentieth of what they do side by side.
Knows names and places; knows no sources and no trust.
"""

import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from math import prod
from pathlib import Path
from typing import NoReturn

from shoal.experts.checkpoint import Checkpoint, is_plain_file_name
from shoal.experts.safetensors_header import (
    ITEM_BYTES,
    MAX_HEADER_BYTES,
    MAX_RANK,
    MAX_TENSOR_BYTES,
    MAX_TENSORS,
    TensorEntry,
    check_name,
    is_naturals,
    parse_object,
)
from shoal.protocol.errors import CheckpointError

LAYOUT_FILE = "shoal.layout"

MAGIC = b"shoallt1"

MAX_NUMBERS = 4
"""In a name; an expert's tensor has two."""

MAX_KINDS = 4096
"""DeepSeek-V3 has 44."""

_NUMBER = re.compile(r"(?<!\d)(?:0|[1-9]\d{0,8})(?!\d)")


@dataclass(frozen=True, slots=True)
class FileLayout:
    """One file. `data_start`: where its tensors begin; `entries` are relative to that."""

    data_start: int
    entries: Mapping[str, TensorEntry]

    @property
    def size_bytes(self) -> int:
        return self.data_start + sum(entry.size_bytes for entry in self.entries.values())


Layout = Mapping[str, FileLayout]
"""By file name."""


def layout_of(checkpoint: Checkpoint) -> Layout:
    """The layout of a checkpoint on this machine. Raises CheckpointError: a header is damaged."""
    opened = {file: checkpoint.open_file(file) for file in checkpoint.files}
    return {file: FileLayout(each.data_start, each.entries) for file, each in opened.items()}


def write_layout(directory: Path) -> int:
    """Make the layout of a checkpoint directory, beside its files; returns its length, 0: its names can not be said.

    Raises:
        ModelNotFound, CheckpointError: as `Checkpoint.open`. OSError: the directory can not be written.
    """
    with Checkpoint.open(directory) as checkpoint:
        layout = layout_of(checkpoint)
    try:
        raw = encode_layout(layout)
    except CheckpointError:  # without one, index and headers are read
        (directory / LAYOUT_FILE).unlink(missing_ok=True)
        return 0
    temporary = directory / f".{LAYOUT_FILE}.{os.getpid()}"
    temporary.write_bytes(raw)
    temporary.replace(directory / LAYOUT_FILE)
    return len(raw)


def encode_layout(layout: Layout) -> bytes:
    """As bytes. Two programs may compress them differently; they mean the same.

    Raises:
        CheckpointError: a name that these patterns can not say, such as one with a `#`.
    """
    kinds: dict[tuple[str, str, tuple[int, ...]], int] = {}
    files = []
    for file, each in sorted(layout.items()):
        of_kind: list[int] = []
        columns: list[list[int]] = [[] for _ in range(MAX_NUMBERS)]
        for name, entry in sorted(each.entries.items(), key=lambda item: (item[1].begin, item[1].size_bytes)):
            numbers = _NUMBER.findall(name)
            if "#" in name or len(numbers) > MAX_NUMBERS:
                raise CheckpointError(LAYOUT_FILE, name, "a name that a layout can not say")
            of_kind.append(kinds.setdefault((_NUMBER.sub("#", name), entry.dtype, entry.shape), len(kinds)))
            for column, number in zip(columns, numbers, strict=False):
                column.append(int(number))
        files.append([file, each.data_start, of_kind, *(column for column in columns if column)])
    value = {"kinds": [[pattern, dtype, list(shape)] for pattern, dtype, shape in kinds], "files": files}
    return MAGIC + zlib.compress(json.dumps(value, separators=(",", ":")).encode("utf-8"), 9)


def decode_layout(raw: bytes) -> Layout:
    """The reverse of `encode_layout`, as if an enemy had written it.

    Raises:
        CheckpointError: not such bytes, or numbers out of range.
    """
    value = parse_object(_inflated(raw), LAYOUT_FILE)
    kinds, files = value.get("kinds"), value.get("files")
    if value.keys() != {"kinds", "files"} or not isinstance(kinds, list) or not isinstance(files, list):
        _refuse("not kinds and files")
    if len(kinds) > MAX_KINDS or len(files) > MAX_TENSORS:
        _refuse(f"{len(kinds)} kinds, {len(files)} files")
    known, layout, left = [_kind(each) for each in kinds], dict[str, FileLayout](), MAX_TENSORS
    for each in files:
        name, file = _file(each, known, left)
        left -= len(file.entries)
        layout[name] = file
    return layout


@dataclass(frozen=True, slots=True)
class _Kind:
    parts: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


def _inflated(raw: bytes) -> bytes:
    if raw[: len(MAGIC)] != MAGIC:
        _refuse("not its first bytes")
    inflating = zlib.decompressobj()
    try:
        data = inflating.decompress(raw[len(MAGIC) :], MAX_HEADER_BYTES)
    except zlib.error as error:
        raise CheckpointError(LAYOUT_FILE, None, f"not compressed as it should be: {error}") from error
    if not inflating.eof or inflating.unused_data:
        _refuse(f"cut short, with bytes behind it, or more than {MAX_HEADER_BYTES} bytes")
    return data


def _kind(value: object) -> _Kind:
    if not isinstance(value, list) or len(value) != 3:
        _refuse("a kind is a pattern, a dtype and a shape")
    pattern, dtype, shape = value
    if not isinstance(pattern, str) or not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        _refuse(f"a kind of {dtype!r:.40}")
    if not is_naturals(shape) or len(shape) > MAX_RANK or pattern.count("#") > MAX_NUMBERS:
        _refuse(f"a kind of shape {shape!r:.80}")
    check_name(pattern, LAYOUT_FILE)
    size_bytes = prod(shape) * ITEM_BYTES[dtype]
    if size_bytes > MAX_TENSOR_BYTES:
        _refuse(f"a tensor of {size_bytes} bytes")
    return _Kind(tuple(pattern.split("#")), dtype, tuple(shape), size_bytes)


def _file(value: object, kinds: Sequence[_Kind], most_tensors: int) -> tuple[str, FileLayout]:
    if not isinstance(value, list) or not 3 <= len(value) <= 3 + MAX_NUMBERS or not isinstance(value[0], str):
        _refuse("a file is a name, a position, kinds and numbers")
    name, data_start, *columns = value
    if not is_plain_file_name(name) or not is_naturals([data_start]) or not all(map(is_naturals, columns)):
        _refuse(f"a file named {name!r:.200}, or numbers that are none")
    entries, begin = dict[str, TensorEntry](), 0
    for tensor, kind in _tensors(columns[0], columns[1:], kinds):
        check_name(tensor, LAYOUT_FILE)
        if len(entries) == most_tensors or tensor in entries:
            _refuse(f"more than {MAX_TENSORS} tensors, or one twice")
        entries[tensor] = TensorEntry(kind.dtype, kind.shape, begin, kind.size_bytes)
        begin += kind.size_bytes
    return name, FileLayout(data_start, entries)


def _tensors(
    of_kind: Sequence[int], columns: Sequence[Sequence[int]], kinds: Sequence[_Kind]
) -> Iterator[tuple[str, _Kind]]:
    left = [iter(column) for column in columns]
    for number in of_kind:
        if number >= len(kinds):
            _refuse(f"a tensor of kind {number} of {len(kinds)}")
        kind = kinds[number]
        words = [str(word) for column in left[: len(kind.parts) - 1] if (word := next(column, None)) is not None]
        if len(words) != len(kind.parts) - 1:
            _refuse("fewer numbers than its names have")
        yield "".join(chain.from_iterable(zip_longest(kind.parts, words, fillvalue=""))), kind
    if any(next(column, None) is not None for column in left):
        _refuse("more numbers than its names have")


def _refuse(reason: str) -> NoReturn:
    raise CheckpointError(LAYOUT_FILE, None, reason)
