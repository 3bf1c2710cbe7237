"""What a running program needs and no other may evict: a list of digests beside the store, held by a lock.

The lock ends with its program, however that ends; a list without one is stale and is removed by who finds it. Knows
files and digests; the store asks it at each eviction.
"""

import fcntl
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from shoal.experts.digest import DIGEST_BYTES
from shoal.experts.pieces.disk import FolderDisk

FOLDER = "pins"


class Pins:
    """One program's pins. Held from `hold` to `close`."""

    def __init__(self, disk: FolderDisk) -> None:
        """`disk`: the store's."""
        self._disk = disk
        self._folder = disk.root / FOLDER
        self._folder.mkdir(exist_ok=True)
        self._path: Path | None = None
        self._descriptor = -1

    def hold(self, name: str, digests: Iterable[bytes]) -> None:
        """Pin these instead of what was pinned before. `name`: of the file, for people; with our process id."""
        self.close()
        path = self._folder / f"{name}.{os.getpid()}.{id(self):x}"
        with self._disk.locked():  # as evictions are: nobody sees a list without its lock, or half of one
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            os.pwrite(descriptor, b"".join(digests), 0)
        self._path, self._descriptor = path, descriptor

    def close(self) -> None:
        """Pin nothing any more. Idempotent."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._path = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def pinned_in(root: Path) -> frozenset[bytes]:
    """Everything that some living program pins in the store at `root`; to be asked under the store's lock."""
    digests: set[bytes] = set()
    for path in sorted((root / FOLDER).glob("*")):
        with suppress(FileNotFoundError):
            digests |= _living(path)
    return frozenset(digests)


def _living(path: Path) -> set[bytes]:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raw = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        return {raw[at : at + DIGEST_BYTES] for at in range(0, len(raw) - DIGEST_BYTES + 1, DIGEST_BYTES)}
    else:
        path.unlink(missing_ok=True)  # its program is gone
        return set()
    finally:
        os.close(descriptor)
