"""Experts as the C++ kernels keep them, in files: a start maps them, checks them, and converts nothing.

A file is found by what went into it: the piece's digest, the weight format, the version of the packing. The layout is
one for all instruction sets (csrc/layout.h). Its first 32 bytes are the BLAKE3 of all others, computed again over the
mapped memory before anybody is given it; what is not whole is removed and packed again. The checksum guards against
disks, not against whoever may write here: the folder is this user's, as the manifests that were computed here are
(ADR 0032). All nodes of a machine map the same memory.

    packed/<piece>.<format>.<version>   a packed expert
    arriving/…                          what is being written

Blocking; any thread, any number of processes. Knows digests and kernels; knows no models and no peers.
"""

import errno
import mmap
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shoal.experts.cpu_backend import CpuExpert
from shoal.experts.digest import DIGEST_BYTES, digest_bytes
from shoal.experts.family import ExpertSpec
from shoal.experts.pieces.disk import DiskFile, FolderDisk
from shoal.kernels.cpu import Format, PackedArray, PackedMatrix, PackedSwiGLU, packing_version
from shoal.protocol.errors import CheckpointError, DiskFull
from shoal.protocol.messages import WeightFormat

PACKED, ARRIVING = "packed", "arriving"

MAGIC = b"shoalpk1"

ALIGN_BYTES = 4096
"""Of each array in a file: a page, and so a cache line, which the kernels ask for."""

MIN_FREE_BYTES = 5 * 10**9
"""What an owner who set no limit keeps free: the cache only saves time."""

_HEAD = struct.Struct("<8s32sIIQQ12Q")
"""Magic, piece, format, packing version, hidden, inter; begin and size of codes and scales of gate, up and down."""

_NAME = re.compile(r"[0-9a-f]{64}\.[a-z0-9_]+\.[0-9]+")


@dataclass(frozen=True, slots=True)
class PackedKey:
    """What a packed expert is of."""

    piece: bytes
    spec: ExpertSpec
    format: WeightFormat

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.piece.hex()}.{self.format.name.lower()}.{packing_version()}"

    @property
    def is_cacheable(self) -> bool:
        """Experts with biases are packed at every start: no more than a few models have some."""
        return not self.spec.has_biases


Room = Callable[[], int]
"""Bytes that may be taken besides what is there; below zero: so much too many."""


class PackedCache:
    """The packed experts of one folder."""

    def __init__(self, disk: FolderDisk, room: Room | None = None) -> None:
        """Makes its folders. `room`: by the owner's limit; None: by what the disk has.

        Raises:
            OSError: the file system refuses.
        """
        self._disk = disk
        self._room = room or self._free
        self._own: set[str] = set()
        for folder in (PACKED, ARRIVING):
            disk.make_folder(folder)
        with disk.locked():  # nobody writes now: whatever is arriving, arrives no more
            for left in disk.files(ARRIVING):
                disk.remove(ARRIVING, left.name)

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self._disk.root

    def find(self, key: PackedKey) -> CpuExpert | None:
        """A packed expert in mapped memory, its checksum computed; None: it is not here.

        Raises:
            CheckpointError: what was here is damaged, and is here no more.
        """
        if not key.is_cacheable or (mapped := self._map(key)) is None:
            return None
        try:
            expert = _expert(key, _checked(mapped, key))
        except ValueError as error:
            self._disk.remove(PACKED, key.name)
            raise CheckpointError(key.name[:16], None, f"a packed expert that is damaged: {error}") from error
        self._own.add(key.name)
        self._disk.mark_used(PACKED, key.name)
        return expert

    def keep(self, key: PackedKey, expert: CpuExpert) -> bool:
        """Write a packed expert, durably; False: it is there already, or of a kind that is not kept.

        Raises:
            DiskFull: no room, and nothing of other runs that could go. OSError: the file system refuses.
        """
        if not key.is_cacheable or self._disk.find(PACKED, key.name) is not None:
            return False
        data = _encoded(key, expert)
        with self._disk.locked():
            if self._disk.find(PACKED, key.name) is not None:
                return False
            self._make_room(len(data))
            try:
                self._write(key.name, data)
            except OSError as error:
                self._disk.remove(ARRIVING, key.name)
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise DiskFull(f"no room for a packed expert of {len(data)} bytes: {error.strerror}") from error
                raise
        self._own.add(key.name)
        return True

    def trim(self, needed_bytes: int = 0) -> int:
        """Remove the longest unused, until there is room for so much besides; returns the bytes that came free."""
        with self._disk.locked():
            return self._evict(needed_bytes - self._room())

    def forget(self, pieces: Iterable[bytes]) -> int:
        """Remove what was packed of these; returns the bytes that came free."""
        names = {piece.hex() for piece in pieces}
        with self._disk.locked():
            return self._remove(file for file in self._disk.files(PACKED) if file.name.partition(".")[0] in names)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self._disk.files(PACKED))

    def _map(self, key: PackedKey) -> mmap.mmap | None:
        try:
            descriptor = os.open(self._disk.root / PACKED / key.name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            size = os.fstat(descriptor).st_size
            mapped = mmap.mmap(descriptor, size, prot=mmap.PROT_READ) if size else None
        finally:
            os.close(descriptor)
        if mapped is None:  # an empty file cannot be mapped
            self._disk.remove(PACKED, key.name)
        elif hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_WILLNEED)  # from a cold disk: read ahead of the hashing
        return mapped

    def _write(self, name: str, data: bytearray) -> None:
        self._disk.write(ARRIVING, name, data)
        self._disk.sync_file(ARRIVING, name)
        self._disk.rename(ARRIVING, name, PACKED, name)
        self._disk.sync_folder(PACKED)

    def _make_room(self, size_bytes: int) -> None:
        excess = size_bytes - self._room()
        if excess > 0 and self._evict(excess) < excess:
            raise DiskFull(f"a packed expert of {size_bytes} bytes does not fit beside what is used")

    def _evict(self, excess_bytes: int) -> int:
        """Other packings first, then by last use; what this program uses stays: its next start is what this is for."""
        files = [file for file in self._disk.files(PACKED) if _NAME.fullmatch(file.name) and file.name not in self._own]
        ours, going, freed = f".{packing_version()}", list[DiskFile](), 0
        for file in sorted(files, key=lambda file: (file.name.endswith(ours), file.used_at_ns, file.name)):
            if freed >= excess_bytes:
                break
            going.append(file)
            freed += file.size_bytes
        return self._remove(going)

    def _remove(self, files: Iterable[DiskFile]) -> int:
        freed = 0
        for file in files:
            self._disk.remove(PACKED, file.name)
            freed += file.size_bytes
        if freed:
            self._disk.sync_folder(PACKED)
        return freed

    def _free(self) -> int:
        return shutil.disk_usage(self._disk.root).free - MIN_FREE_BYTES


def _encoded(key: PackedKey, expert: CpuExpert) -> bytearray:
    """A file's bytes."""
    arrays = [array for matrix in expert.weights.matrices for array in matrix.bytes]
    begins, end = [], _aligned(DIGEST_BYTES + _HEAD.size)
    for array in arrays:
        begins.append(end)
        end = _aligned(end + (0 if array is None else array.nbytes))
    data = bytearray(end)
    places = [
        number
        for begin, array in zip(begins, arrays, strict=True)
        for number in (begin, 0 if array is None else array.nbytes)
    ]
    _HEAD.pack_into(data, DIGEST_BYTES, *_head_of(key), *places)
    view = memoryview(data)
    for begin, array in zip(begins, arrays, strict=True):
        if array is not None:
            view[begin : begin + array.nbytes] = array.data
    view[:DIGEST_BYTES] = digest_bytes(view[DIGEST_BYTES:])
    return data


def _checked(mapped: mmap.mmap, key: PackedKey) -> list[PackedArray]:
    """The six arrays of a file whose checksum is right. Raises ValueError: it is not, or the file is of another key."""
    view = memoryview(mapped)
    if len(view) < _aligned(DIGEST_BYTES + _HEAD.size):
        raise ValueError(f"{len(view)} bytes")
    if digest_bytes(view[DIGEST_BYTES:]) != view[:DIGEST_BYTES]:
        raise ValueError("another checksum than it states")
    head = _HEAD.unpack_from(view, DIGEST_BYTES)
    if head[:6] != _head_of(key):
        raise ValueError("packed of something else")
    places = list(zip(head[6::2], head[7::2], strict=True))
    if any(begin + size > len(view) for begin, size in places):
        raise ValueError("arrays beyond its end")
    whole = np.frombuffer(mapped, np.uint8)
    return [whole[begin : begin + size] for begin, size in places]


def _head_of(key: PackedKey) -> tuple[bytes, bytes, int, int, int, int]:
    return MAGIC, key.piece, int(key.format), packing_version(), key.spec.hidden, key.spec.inter


def _expert(key: PackedKey, arrays: list[PackedArray]) -> CpuExpert:
    gate, up, down = _matrices(key, arrays)
    return CpuExpert(key.spec, PackedSwiGLU(gate, up, down, key.spec.activation))


def _matrices(key: PackedKey, arrays: list[PackedArray]) -> Iterator[PackedMatrix]:
    wide, tall = (key.spec.inter, key.spec.hidden), (key.spec.hidden, key.spec.inter)
    for number, shape in enumerate((wide, wide, tall)):
        codes, scales = arrays[2 * number : 2 * number + 2]
        yield PackedMatrix.over(Format(key.format), *shape, codes, scales if scales.size else None)


def _aligned(size: int) -> int:
    return -(-size // ALIGN_BYTES) * ALIGN_BYTES
