"""Tensors on disk: `model.safetensors`, or shards with `model.safetensors.index.json`, read as if they were hostile.

A holder's disk work stands here: it opens only the shards that its experts are in, and reads only their bytes, counted
in `bytes_read`. Knows files, names and dtypes; knows neither models nor experts, and trusts nothing it reads: what the
bytes should be is `manifest.py`'s business. Never unpickles (`torch.load` is nowhere in shoal).
"""

import os
import stat
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from shoal.experts.safetensors_header import (
    LENGTH_BYTES,
    MAX_HEADER_BYTES,
    TensorEntry,
    check_name,
    parse_header,
    parse_object,
)
from shoal.protocol.errors import CheckpointError, ModelNotFound

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FILE_SUFFIX = ".safetensors"

MAX_FILES = 4096
"""Shards of a checkpoint; DeepSeek-V3 has 163."""

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as it was read: its name, the file it came from, and its dtype in the words of the format."""

    name: str
    file: str
    dtype: str
    data: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    @property
    def raw(self) -> memoryview:
        """The bytes as in the file, not copied."""
        return _raw(self.data)


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A shard that has been opened: its descriptor, where its data starts, its tensors and its header's bytes."""

    descriptor: int
    data_start: int
    entries: Mapping[str, TensorEntry]
    header: bytes


class Checkpoint:
    """The tensors of a directory. Safe to read from several threads.

    Little-endian machines only, as the format is. Files stay open until `close`, so that a shard that is replaced
    meanwhile cannot give bytes that its header does not describe.
    """

    def __init__(self, directory: Path, file_of: Mapping[str, str] | None) -> None:
        """Use `open`. `file_of`: the index; None for a single file."""
        self.directory = directory
        self._lock = threading.Lock()
        self._count_lock = threading.Lock()
        self._open: dict[str, OpenFile] = {}
        self._bytes_read = 0
        self._index = file_of
        self._file_of = file_of if file_of is not None else {}
        if file_of is None:
            self._file_of = dict.fromkeys(self.open_file(SINGLE_FILE).entries, SINGLE_FILE)

    @classmethod
    def open(cls, directory: Path) -> "Checkpoint":
        """Open a checkpoint directory: reads the index, or the header of the single file, nothing else.

        Raises:
            ModelNotFound: the directory is not there or holds no safetensors files. CheckpointError: index or header
            are damaged, or both a single file and an index are there.
        """
        single, index = directory / SINGLE_FILE, directory / INDEX_FILE
        if not directory.is_dir():
            raise ModelNotFound(f"no such model directory: {directory}")
        if index.is_file() and single.is_file():
            raise CheckpointError(INDEX_FILE, None, f"stands beside {SINGLE_FILE}: two models; remove one")
        if not index.is_file() and not single.is_file():
            raise ModelNotFound(f"{directory} holds neither {SINGLE_FILE} nor {INDEX_FILE}")
        return cls(directory, _read_index(index) if index.is_file() else None)

    @property
    def bytes_read(self) -> int:
        """Bytes read from safetensors files so far, headers included, the index not."""
        return self._bytes_read

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors, as index or header state them."""
        return frozenset(self._file_of)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the safetensors files, sorted."""
        return tuple(sorted(set(self._file_of.values()))) or (SINGLE_FILE,)

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._file_of

    def file_of(self, name: str) -> str:
        """The file that a tensor is in.

        Raises:
            CheckpointError: there is no such tensor.
        """
        if name not in self._file_of:
            raise CheckpointError(INDEX_FILE if self._index is not None else SINGLE_FILE, name, "missing")
        return self._file_of[name]

    def entry(self, name: str) -> TensorEntry:
        """Dtype, shape and place of a tensor; opens its file if need be.

        Raises:
            CheckpointError: there is no such tensor, or its file is missing, damaged or contradicts the index.
        """
        return self.open_file(self.file_of(name)).entries[name]

    def read(self, name: str) -> StoredTensor:
        """Read one tensor and not a byte more.

        Raises:
            CheckpointError: as `entry`, or the file ended early.
        """
        file, entry = self.file_of(name), self.entry(name)
        shard = self.open_file(file)
        buffer = torch.empty(entry.size_bytes, dtype=torch.uint8)
        self._read_into(shard.descriptor, _raw(buffer), shard.data_start + entry.begin, file, name)
        return StoredTensor(name, file, entry.dtype, buffer.view(TORCH_DTYPES[entry.dtype]).view(entry.shape))

    def read_range(self, name: str, begin: int, size: int) -> bytearray:
        """`size` bytes of a tensor, from its byte `begin` on.

        Raises:
            CheckpointError: as `read`, or beyond the tensor.
        """
        file, entry = self.file_of(name), self.entry(name)
        if not 0 <= begin <= begin + size <= entry.size_bytes:
            raise CheckpointError(file, name, f"bytes {begin} to {begin + size} of {entry.size_bytes}")
        shard, data = self.open_file(file), bytearray(size)
        self._read_into(shard.descriptor, memoryview(data), shard.data_start + entry.begin + begin, file, name)
        return data

    def read_part(self, name: str, index: int) -> StoredTensor:
        """Read one item along a tensor's first dimension, as a tensor named `name[index]`, and not a byte more.

        Raises:
            CheckpointError: as `read`, or a tensor without dimensions, or without that item.
        """
        file, entry = self.file_of(name), self.entry(name)
        if not entry.shape or not 0 <= index < entry.shape[0]:
            raise CheckpointError(file, name, f"shape {list(entry.shape)} has no item {index}")
        shard, size = self.open_file(file), entry.size_bytes // entry.shape[0]
        buffer = torch.empty(size, dtype=torch.uint8)
        self._read_into(shard.descriptor, _raw(buffer), shard.data_start + entry.begin + index * size, file, name)
        data = buffer.view(TORCH_DTYPES[entry.dtype]).view(entry.shape[1:])
        return StoredTensor(f"{name}[{index}]", file, entry.dtype, data)

    def open_file(self, file: str) -> OpenFile:
        """Open a file of this checkpoint and parse its header; later calls return the same.

        Raises:
            CheckpointError: the file is missing, its header is damaged, or it contradicts the index.
        """
        with self._lock:
            if file not in self._open:
                self._open[file] = self._open_new(file)
            return self._open[file]

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            for shard in self._open.values():
                os.close(shard.descriptor)
            self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_new(self, file: str) -> OpenFile:
        descriptor, size = _open_regular(self.directory / file)
        try:
            shard = self._read_header(descriptor, size, file)
            if self._index is not None:
                _check_against_index(shard.entries, self._index, file)
        except BaseException:
            os.close(descriptor)
            raise
        return shard

    def _read_header(self, descriptor: int, size: int, file: str) -> OpenFile:
        if size < LENGTH_BYTES:
            raise CheckpointError(file, None, f"truncated: {size} bytes")
        prefix = bytearray(LENGTH_BYTES)
        self._read_into(descriptor, memoryview(prefix), 0, file, None)
        header_bytes = int.from_bytes(prefix, "little")
        if header_bytes > MAX_HEADER_BYTES or header_bytes > size - LENGTH_BYTES:
            limit = min(MAX_HEADER_BYTES, size - LENGTH_BYTES)
            raise CheckpointError(file, None, f"a header of {header_bytes} bytes, {limit} are possible")
        header = bytearray(header_bytes)
        self._read_into(descriptor, memoryview(header), LENGTH_BYTES, file, None)
        data_start = LENGTH_BYTES + header_bytes
        entries = parse_header(bytes(header), size - data_start, file)
        return OpenFile(descriptor, data_start, entries, bytes(header))

    def _read_into(self, descriptor: int, target: memoryview, position: int, file: str, name: str | None) -> None:
        done = 0
        while done < len(target):  # one call gives at most 2 GiB
            count = os.preadv(descriptor, [target[done:]], position + done)
            if count == 0:
                raise CheckpointError(file, name, f"truncated: the file ends at {position + done}")
            done += count
        with self._count_lock:
            self._bytes_read += done


def _raw(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def _read_index(path: Path) -> dict[str, str]:
    """The index's `weight_map`: tensor name to file name.

    Raises:
        CheckpointError: not the published layout, or a file name that leaves the directory.
    """
    size = path.stat().st_size
    if size > MAX_HEADER_BYTES:
        raise CheckpointError(INDEX_FILE, None, f"{size} bytes, at most {MAX_HEADER_BYTES}")
    return parse_index(path.read_bytes())


def parse_index(raw: bytes) -> dict[str, str]:
    """The `weight_map` of an index's bytes.

    Raises:
        CheckpointError: as `_read_index`.
    """
    weight_map = parse_object(raw, INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(INDEX_FILE, None, "no weight_map")
    for name, file in weight_map.items():
        check_name(name, INDEX_FILE)
        if not isinstance(file, str) or not is_plain_file_name(file):
            raise CheckpointError(INDEX_FILE, name, f"in a file named {file!r:.200}")
    if len(set(weight_map.values())) > MAX_FILES:
        raise CheckpointError(INDEX_FILE, None, f"more than {MAX_FILES} files")
    return weight_map


def is_plain_file_name(file: str) -> bool:
    """Whether a file of a checkpoint may be called so: no path, nothing hidden, `.safetensors`."""
    is_plain = file.isprintable() and not set(file) & set("/\\:") and not file.startswith(".")
    return is_plain and file.endswith(FILE_SUFFIX) and len(file) <= 255


def _open_regular(path: Path) -> tuple[int, int]:
    """Open a regular file for reading; returns descriptor and size. A link is followed: download caches use them."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # not blocked by a named pipe
    except OSError as error:
        raise CheckpointError(path.name, None, f"cannot be opened: {error.strerror}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise CheckpointError(path.name, None, "not a regular file")
    return descriptor, status.st_size


def _check_against_index(entries: Mapping[str, TensorEntry], index: Mapping[str, str], file: str) -> None:
    for name in entries:
        if index.get(name) != file:
            stated = f"the index has it in {index[name]}" if name in index else "the index does not have it"
            raise CheckpointError(file, name, stated)
    for name, stated_file in index.items():
        if stated_file == file and name not in entries:
            raise CheckpointError(file, name, "the index has it here, the header does not")
