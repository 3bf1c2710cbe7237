"""The list of a model's small files (PROTOCOL.md §7.4): by name, size and hash what a client reads beside the weights.

Its BLAKE3 stands in the invite, so whoever has only a token can take config, manifest and tokenizer from strangers and
check each before a byte of it is parsed. Sans-IO. Knows names and sizes; what a file is for, others know.
"""

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass

import msgpack
from blake3 import blake3

from shoal.protocol.errors import Malformed
from shoal.protocol.fields import BytesField, IntField

MAX_FILES = 16
"""Seven are known; more may come."""

MAX_FILE_BYTES = 64 * 1024 * 1024
"""tokenizer.json of Kimi K2, the largest known, has 20 MB."""

MAX_LIST_BYTES = 2048
"""Sixteen entries with the longest names."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_VERSION = IntField(1, "version", 1, 1)
_FILES_KEY = 2
_SIZE = IntField(0, "size_bytes", 0, MAX_FILE_BYTES)
_DIGEST = BytesField(0, "digest", 32)


@dataclass(frozen=True, slots=True)
class ListedFile:
    """One file. `digest`: BLAKE3 of its bytes."""

    name: str
    size_bytes: int
    digest: bytes


def encode_files(files: Iterable[ListedFile]) -> bytes:
    """The list, in order of names.

    Raises:
        Malformed: too many, a name that is no plain file's, a size out of range.
    """
    rows = [[file.name, file.size_bytes, file.digest] for file in sorted(files, key=lambda file: file.name)]
    _read({1: 1, _FILES_KEY: rows})
    return bytes(msgpack.packb({1: 1, _FILES_KEY: rows}))


def decode_files(data: bytes) -> tuple[ListedFile, ...]:
    """The reverse of `encode_files`.

    Raises:
        Malformed: oversize, out of bounds, not in order, or not canonical.
    """
    if len(data) > MAX_LIST_BYTES:
        raise Malformed(f"a list of files of {len(data)} bytes")
    try:
        fields = msgpack.unpackb(
            data, strict_map_key=False, max_str_len=64, max_bin_len=32, max_array_len=MAX_FILES, max_map_len=2,
            max_ext_len=0,
        )  # fmt: skip
    except ValueError as error:  # msgpack's errors are ValueErrors
        raise Malformed("not a list of files") from error
    files = _read(fields)
    if encode_files(files) != data:
        raise Malformed("a list of files that is not canonical")
    return files


def list_digest(encoded: bytes) -> bytes:
    """What an invite says of a list; 32 bytes."""
    return blake3(encoded).digest()


def _read(fields: object) -> tuple[ListedFile, ...]:
    if not isinstance(fields, dict) or fields.keys() != {1, _FILES_KEY}:
        raise Malformed("a list of files has a version and files")
    _VERSION.check(fields[1])
    rows = fields[_FILES_KEY]
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_FILES:
        raise Malformed(f"not 1 to {MAX_FILES} files")
    files = tuple(_file(row) for row in rows)
    if any(first.name >= second.name for first, second in itertools.pairwise(files)):
        raise Malformed("files that are not in order of their names")
    return files


def _file(row: object) -> ListedFile:
    if not isinstance(row, list) or len(row) != 3 or type(row[0]) is not str or not _NAME.fullmatch(row[0]):
        raise Malformed("a file is a plain name, a size and a digest")
    return ListedFile(row[0], _SIZE.check(row[1]), _DIGEST.check(row[2]))
