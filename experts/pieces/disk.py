"""The seam between the store and the file system: the few operations whose order decides what survives a power cut.

`FolderDisk` is the real one. Tests put one in its place that loses, tears and reorders whatever was not made durable.
Names are of this store's own making, one folder deep. Knows bytes and names; knows no hashes.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class DiskFile:
    """A file in a folder. `used_at_ns`: when it was last marked as used, by the file system's clock."""

    name: str
    size_bytes: int
    used_at_ns: int


class Disk(Protocol):
    """What the store asks of a file system. Everything may raise OSError."""

    def make_folder(self, folder: str) -> None:
        """Make a folder if need be, durably."""

    def write(self, folder: str, name: str, data: bytes | bytearray) -> None:
        """Create or replace a file. Nothing is durable yet."""

    def sync_file(self, folder: str, name: str) -> None:
        """Make a file's bytes durable; its name may still be lost."""

    def rename(self, folder: str, name: str, new_folder: str, new_name: str) -> None:
        """Move a file, at once for every reader. Not durable yet."""

    def sync_folder(self, folder: str) -> None:
        """Make the names in a folder durable."""

    def read(self, folder: str, name: str) -> bytearray | None:
        """A file's bytes; None if there is none."""

    def read_range(self, folder: str, name: str, begin: int, size: int) -> bytearray | None:
        """A part of a file; shorter where it ends, None if there is no file."""

    def remove(self, folder: str, name: str) -> None:
        """Remove a file if it is there. Not durable."""

    def mark_used(self, folder: str, name: str) -> None:
        """Set the file's `used_at_ns` to now."""

    def find(self, folder: str, name: str) -> DiskFile | None:
        """One file; None if there is none."""

    def files(self, folder: str) -> list[DiskFile]:
        """The files of a folder, in no order."""

    def locked(self) -> AbstractContextManager[None]:
        """Keep other programs, and other threads of ours, from changing the store meanwhile. Not re-entrant."""


class FolderDisk:
    """A folder of the real file system. Any thread; any number of processes."""

    def __init__(self, root: Path) -> None:
        """Makes the folder."""
        root.mkdir(parents=True, exist_ok=True)
        self.root = root

    def make_folder(self, folder: str) -> None:
        with suppress(FileExistsError):
            (self.root / folder).mkdir()
            _sync(self.root)

    def write(self, folder: str, name: str, data: bytes | bytearray) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        descriptor = os.open(self.root / folder / name, flags, 0o644)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
        finally:
            os.close(descriptor)

    def sync_file(self, folder: str, name: str) -> None:
        _sync(self.root / folder / name)

    def rename(self, folder: str, name: str, new_folder: str, new_name: str) -> None:
        os.rename(self.root / folder / name, self.root / new_folder / new_name)

    def sync_folder(self, folder: str) -> None:
        _sync(self.root / folder)

    def read(self, folder: str, name: str) -> bytearray | None:
        try:
            descriptor = os.open(self.root / folder / name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return _read_all(descriptor)
        finally:
            os.close(descriptor)

    def read_range(self, folder: str, name: str, begin: int, size: int) -> bytearray | None:
        try:
            descriptor = os.open(self.root / folder / name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return _read_from(descriptor, begin, size)
        finally:
            os.close(descriptor)

    def remove(self, folder: str, name: str) -> None:
        (self.root / folder / name).unlink(missing_ok=True)

    def mark_used(self, folder: str, name: str) -> None:
        with suppress(OSError):  # evicted meanwhile, or a stick that is read-only: only the order of eviction suffers
            os.utime(self.root / folder / name)

    def find(self, folder: str, name: str) -> DiskFile | None:
        try:
            status = (self.root / folder / name).stat()
        except FileNotFoundError:
            return None
        return DiskFile(name, status.st_size, status.st_mtime_ns)

    def files(self, folder: str) -> list[DiskFile]:
        found = []
        with os.scandir(self.root / folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    found.append(DiskFile(entry.name, status.st_size, status.st_mtime_ns))
        return found

    @contextmanager
    def locked(self) -> Iterator[None]:
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # freed by the system if we are killed
            yield
        finally:
            os.close(descriptor)


def _read_all(descriptor: int) -> bytearray:
    return _read_from(descriptor, 0, os.fstat(descriptor).st_size)


def _read_from(descriptor: int, begin: int, size: int) -> bytearray:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < len(data):
        count = os.preadv(descriptor, [view[done:]], begin + done)
        if count == 0:
            return data[:done]  # shorter than it was a moment ago: the hash will say so
        done += count
    return data


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if hasattr(fcntl, "F_FULLFSYNC"):  # on macOS fsync leaves the bytes in the drive's own cache
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        else:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
