"""A disk of one simulated node, behind the seam of the real one: what is on it outlives the process.

While it is full, a write ends half-way with ENOSPC and leaves what it wrote, as a file system does. Nothing here knows
what the bytes are; the store above it (`experts/pieces/store.py`) is the real one.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from shoal.experts.pieces.disk import DiskFile


class MemoryDisk:
    """Implements `Disk`. What is written is durable at once: power cuts are tried elsewhere (`crashing_disk.py`)."""

    def __init__(self) -> None:
        self.is_full = False
        self.num_refused = 0
        """Writes that met a full disk."""
        self._folders: dict[str, dict[str, bytearray]] = {}
        self._is_locked = False

    def make_folder(self, folder: str) -> None:
        self._folders.setdefault(folder, {})

    def write(self, folder: str, name: str, data: bytes | bytearray) -> None:
        if self.is_full:
            self.num_refused += 1
            self._folders[folder][name] = bytearray(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._folders[folder][name] = bytearray(data)

    def sync_file(self, folder: str, name: str) -> None: ...

    def rename(self, folder: str, name: str, new_folder: str, new_name: str) -> None:
        self._folders[new_folder][new_name] = self._folders[folder].pop(name)

    def sync_folder(self, folder: str) -> None: ...

    def read(self, folder: str, name: str) -> bytearray | None:
        data = self._folders[folder].get(name)
        return None if data is None else bytearray(data)

    def read_range(self, folder: str, name: str, begin: int, size: int) -> bytearray | None:
        data = self.read(folder, name)
        return None if data is None else data[begin : begin + size]

    def remove(self, folder: str, name: str) -> None:
        self._folders[folder].pop(name, None)

    def mark_used(self, folder: str, name: str) -> None: ...

    def find(self, folder: str, name: str) -> DiskFile | None:
        data = self._folders[folder].get(name)
        return None if data is None else DiskFile(name, len(data), 0)

    def files(self, folder: str) -> list[DiskFile]:
        return [DiskFile(name, len(data), 0) for name, data in self._folders.get(folder, {}).items()]

    @contextmanager
    def locked(self) -> Iterator[None]:
        if self._is_locked:
            raise RuntimeError("the lock of a store was taken twice: on a real disk that waits for ever")
        self._is_locked = True
        try:
            yield
        finally:
            self._is_locked = False
