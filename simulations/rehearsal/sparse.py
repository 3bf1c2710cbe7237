"""Writes a checkpoint of its true size that is almost only holes: headers, index and config as published.

A hole takes no room on disk and reads as zeros; so all zeros would prove nothing, some tensors get filler: every scale
of theirs, and the first bytes of their weights, drawn from the tensor's own name. The same name gives the same bytes
everywhere. Knows files; knows no model code but the shape.
"""

import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3

from shoal.experts.checkpoint import INDEX_FILE
from shoal.experts.family import CONFIG_FILE
from shoal.simulations.rehearsal.layout import PublishedShape, Tensor, files

FILLER_BYTES = 4096
"""At the start of a weight: one page, the least that a file system keeps."""

ORDER = ("F32", "BF16", "F8_E4M3")
"""The order of the data in a file, then by name: wide types first, as the safetensors library writes it."""

_FINITE = {"BF16": 0xBF7F, "F8_E4M3": 0x77}
"""Masks that leave no NaN and no infinity."""

Fills = Callable[[str], bool]
"""Whether a tensor of this name is to have bytes of its own."""


@dataclass(frozen=True, slots=True)
class SparseCheckpoint:
    """What was written."""

    directory: Path
    num_files: int
    num_tensors: int
    size_bytes: int
    """Of the safetensors files, as `ls` tells it."""
    header_bytes: int
    index_bytes: int
    disk_bytes: int
    """What the files take on disk."""


def write_sparse(directory: Path, shape: PublishedShape, fills: Fills) -> SparseCheckpoint:
    """Write a checkpoint into a new directory.

    Raises:
        OSError: the file system refuses, e.g. files of this size.
    """
    directory.mkdir(parents=True)
    parts = files(shape)
    headers = {file: _write_file(directory / file, tensors, fills) for file, tensors in parts.items()}
    weight_map = {tensor.name: file for file, tensors in parts.items() for tensor in tensors}
    total = sum(tensor.size_bytes for tensors in parts.values() for tensor in tensors)
    index = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
    (directory / INDEX_FILE).write_text(index, encoding="ascii")
    (directory / CONFIG_FILE).write_text(json.dumps(shape.config(), indent=2), encoding="ascii")
    statuses = [path.stat() for path in directory.iterdir()]
    return SparseCheckpoint(
        directory=directory,
        num_files=len(parts),
        num_tensors=len(weight_map),
        size_bytes=sum((directory / file).stat().st_size for file in parts),
        header_bytes=sum(headers.values()),
        index_bytes=len(index),
        disk_bytes=sum(512 * status.st_blocks for status in statuses),
    )


def _write_file(path: Path, tensors: Sequence[Tensor], fills: Fills) -> int:
    """Write one file; returns the bytes before its data."""
    placed = list(_placed(tensors))
    entries = {
        tensor.name: {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [begin, begin + tensor.size_bytes],
        }
        for tensor, begin in placed
    }
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")).encode("ascii")
    header += b" " * (-len(header) % 8)
    start = 8 + len(header)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(start + sum(tensor.size_bytes for tensor in tensors))
        for tensor, begin in placed:
            if fills(tensor.name):
                os.pwrite(file.fileno(), filler(tensor), start + begin)
    return start


def _placed(tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, int]]:
    begin = 0
    for tensor in sorted(tensors, key=lambda tensor: (ORDER.index(tensor.dtype), tensor.name)):
        yield tensor, begin
        begin += tensor.size_bytes


def filler(tensor: Tensor) -> bytes:
    """The first bytes of a tensor, finite numbers of its type; of scales all, powers of two from 2^-16 to 2^-9."""
    if tensor.dtype == "F32":
        drawn = np.frombuffer(blake3(tensor.name.encode()).digest(tensor.num_elements), np.uint8)
        return np.exp2((drawn & 7).astype(np.float32) - 16).astype("<f4").tobytes()
    size = min(FILLER_BYTES, tensor.size_bytes)
    raw = np.frombuffer(blake3(tensor.name.encode()).digest(size), "<u2" if tensor.dtype == "BF16" else np.uint8)
    return (raw & _FINITE[tensor.dtype]).tobytes()
