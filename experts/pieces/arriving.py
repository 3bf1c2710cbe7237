"""A piece that comes in parts, straight to the disk: for what is too large to be held in memory until it is whole.

    partial/<64 hex digits>        its bytes as far as they came, holes for the rest
    partial/<64 hex digits>.gaps   what is missing of it, as it was when the bytes were last made durable

So a fetch that was interrupted, by Ctrl-C, a power cut or the peer, goes on where it was. Nothing here is trusted:
`PieceStore.adopt` hashes all of it. Programs that fetch the same piece at the same time have files of their own.
Blocking. Knows files; knows no sources.
"""

import errno
import fcntl
import os
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

from shoal.experts.pieces.disk import FolderDisk
from shoal.experts.pieces.ranged import RangedPiece

PARTIAL = "partial"

NOTE_BYTES = 64 * 1024 * 1024
"""After so many bytes what came is made durable: what a power cut costs at most."""

MAX_GAPS = 4096
"""In a note; eight chunks are asked for at a time."""

_HEAD = struct.Struct("<QI")
_GAP = struct.Struct("<QQ")

Gaps = list[tuple[int, int]]
"""(begin, end) of what has not come, ascending."""


class Arrival:
    """One piece on its way. Its file is locked until `close`."""

    folder = PARTIAL

    def __init__(self, disk: FolderDisk, digest: bytes) -> None:
        """Opens what came of it before, or begins anew.

        Raises:
            OSError: the file system refuses.
        """
        disk.make_folder(PARTIAL)
        self.digest = digest
        self.name, self._descriptor = _open(disk.root / PARTIAL, digest.hex())
        self._path = disk.root / PARTIAL / self.name
        self._noted = 0
        self._lock = threading.Lock()
        self.size_bytes, self.gaps = self._read_note()

    def begin(self, size_bytes: int) -> None:
        """Its length is known now."""
        os.ftruncate(self._descriptor, 0)
        os.ftruncate(self._descriptor, size_bytes)
        self.size_bytes, self.gaps = size_bytes, [(0, size_bytes)]

    def write(self, begin: int, data: bytes | memoryview) -> bool:
        """Put a part in its place. Returns whether it is time for a `note`."""
        view, at = memoryview(data), begin
        with self._lock:  # a descriptor that is closed meanwhile may be another file's
            while view and self._descriptor >= 0:
                done = os.pwrite(self._descriptor, view, at)
                view, at = view[done:], at + done
            self._noted += len(data)
        return self._noted >= NOTE_BYTES

    def note(self, gaps: Sequence[tuple[int, int]]) -> None:
        """Make durable what came, and that these parts did not."""
        with self._lock:
            if self.size_bytes == 0 or len(gaps) > MAX_GAPS or self._descriptor < 0:
                return
            os.fdatasync(self._descriptor)
            self._noted = 0
        temporary = self._note_path.with_suffix(".new")
        rows = b"".join(_GAP.pack(*gap) for gap in gaps)
        temporary.write_bytes(_HEAD.pack(self.size_bytes, len(gaps)) + rows)
        temporary.replace(self._note_path)

    def hash(self) -> bytes:
        """BLAKE3 of all of it, step by step."""
        return RangedPiece(b"", self.size_bytes, self._read).digest()

    def discard(self) -> None:
        """Forget what came: it was wrong."""
        self._note_path.unlink(missing_ok=True)
        os.ftruncate(self._descriptor, 0)
        self.size_bytes, self.gaps = 0, []

    def close(self) -> None:
        """Let go of the file. Idempotent. One that was adopted leaves nothing behind."""
        with self._lock:
            if self._descriptor < 0:
                return
            if not self._path.exists() or self.size_bytes == 0:
                self._note_path.unlink(missing_ok=True)
                self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def _read(self, begin: int, size: int) -> bytes:
        data = os.pread(self._descriptor, size, begin)
        if len(data) != size:
            raise OSError(errno.EIO, "cut short meanwhile", self.name)
        return data

    @property
    def _note_path(self) -> Path:
        return self._path.with_name(self.name + ".gaps")

    def _read_note(self) -> tuple[int, Gaps]:
        """Length and gaps of what is here; zero and none if there is no note, or no such file as it says."""
        try:
            raw = self._note_path.read_bytes()
            size_bytes, count = _HEAD.unpack_from(raw)
            gaps = [(begin, end) for begin, end in _GAP.iter_unpack(raw[_HEAD.size :])]
        except (FileNotFoundError, struct.error):
            return 0, []
        edges = [edge for gap in gaps for edge in gap]
        is_right = (
            len(gaps) == count <= MAX_GAPS and edges == sorted(set(edges)) and max(edges, default=0) <= size_bytes
        )
        return (size_bytes, gaps) if is_right and os.fstat(self._descriptor).st_size == size_bytes else (0, [])


def forget(disk: FolderDisk, digests: Sequence[bytes]) -> None:
    """Remove what came of pieces that nobody wants any more."""
    for digest in digests:
        for path in (disk.root / PARTIAL).glob(f"{digest.hex()}*"):
            path.unlink(missing_ok=True)


def _open(folder: Path, name: str) -> tuple[str, int]:
    """A locked file: of this name, or, where another program has that, of one of our own."""
    for each in (name, f"{name}.{os.getpid()}"):
        descriptor = os.open(folder / each, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        return each, descriptor
    raise BlockingIOError(f"{name[:16]}… is being fetched by this program already")
