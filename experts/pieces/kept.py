"""What a source said of itself, its index and headers, kept beside the model: the next fetch need not read them again.

    models/<root>/layout/<source's hash>/<key's hash>   BLAKE3 of what follows (32 bytes), and it

Shared by all programs of a machine, gone with the model. Hashed whenever it is read; what is damaged counts as missing.
Whether it is still true of the source, `places.py` finds out. Blocking. Knows files; knows nothing of what is in them.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from shoal.experts.digest import DIGEST_BYTES
from shoal.experts.pieces.disk import FolderDisk

FOLDER = "layout"

MAX_SOURCES = 4
"""Of a model; beyond them the one that was kept first goes. A commit, and a mirror's URL, is a source of its own."""


class Kept:
    """One source's of one model."""

    def __init__(self, model: Path | None, source: str) -> None:
        """model: its folder on the shelf; as long as that is not there, and for None, things are kept in memory."""
        self._model = model
        self._source = _name(source)
        self._pending: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        """What was kept under a key; None: nothing that is whole."""
        found = self._pending.get(_name(key))
        if found is not None or self._model is None:
            return found
        path = self._model / FOLDER / self._source / _name(key)
        try:
            raw = path.read_bytes()
        except OSError:
            return None
        return raw[DIGEST_BYTES:] if raw[:DIGEST_BYTES] == blake3(raw[DIGEST_BYTES:]).digest() else None

    def put(self, key: str, data: bytes) -> None:
        """Keep it. A disk that refuses costs the next fetch the reading, and this one nothing."""
        self._pending[_name(key)] = data
        self.settle()

    def settle(self) -> None:
        """Write what waits for the model to be on the shelf, if it is there now."""
        if self._model is None or not self._model.is_dir():
            return
        with suppress(OSError):
            disk = FolderDisk(self._model / FOLDER)
            disk.make_folder(self._source)
            for name in list(self._pending):
                self._write(disk, name, self._pending[name])
                del self._pending[name]
            self._prune(disk)

    def forget(self) -> None:
        """It is not true any more."""
        self._pending.clear()
        if self._model is not None:
            shutil.rmtree(self._model / FOLDER / self._source, ignore_errors=True)

    def _write(self, disk: FolderDisk, name: str, data: bytes) -> None:
        temporary = f".{name}.{os.getpid()}"
        disk.write(self._source, temporary, blake3(data).digest() + data)
        disk.sync_file(self._source, temporary)
        disk.rename(self._source, temporary, self._source, name)
        disk.sync_folder(self._source)

    def _prune(self, disk: FolderDisk) -> None:
        others = [path for path in disk.root.iterdir() if path.is_dir() and path.name != self._source]
        for path in sorted(others, key=lambda path: path.stat().st_mtime_ns, reverse=True)[MAX_SOURCES - 1 :]:
            shutil.rmtree(path, ignore_errors=True)


def _name(words: str) -> str:
    return blake3(words.encode("utf-8")).hexdigest(16)
