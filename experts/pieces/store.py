"""Pieces on disk, each a file named by its own hash: safe against power loss, never given out unverified.

A piece is written under another name, made durable, renamed, and its name made durable: whatever moment the power
goes, it is there whole or not at all, and one whose `put` returned is there. Whoever reads gets bytes that were hashed
after they were read; a damaged piece is removed and is missing from then on. One store serves all nodes of a machine:
writers wait for each other, readers for nobody.

    pieces/<64 hex digits>   a verified piece
    arriving/…               what is being written; garbage after a crash, and removed by the next writer's start
    partial/…                pieces that come in parts (`arriving.py`); they outlive a program, and are never read

Blocking; any thread. Knows digests; knows no models, no sources and no network.
"""

import errno
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shoal.experts.digest import digest_bytes
from shoal.experts.pieces.disk import Disk
from shoal.experts.pieces.ranged import RangedPiece
from shoal.protocol.errors import CheckpointError, DiskFull

PIECES, ARRIVING = "pieces", "arriving"

_NAME = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class StoredPiece:
    """A piece that is there; its bytes were verified when they came, and will be when they are read."""

    digest: bytes
    size_bytes: int
    used_at_ns: int


EvictionOrder = Callable[[StoredPiece], float]
"""What goes first: the smallest. E.g. the last use, or minus the number of replicas that the swarm has."""


def oldest_use_first(piece: StoredPiece) -> float:
    """The order for a machine that knows nothing of a swarm."""
    return piece.used_at_ns


def nothing_pinned() -> frozenset[bytes]:
    """For a store that only one short-lived program uses."""
    return frozenset()


@dataclass(frozen=True, slots=True)
class StorePolicy:
    """How much a store may hold and what leaves first."""

    cap_bytes: int | None = None
    """None: as much as the disk has."""
    order: EvictionOrder = oldest_use_first
    pinned: Callable[[], frozenset[bytes]] = nothing_pinned
    """Digests that must stay; asked at each eviction."""


DEFAULT_POLICY = StorePolicy()


class PieceStore:
    """The pieces of one folder."""

    def __init__(self, disk: Disk, policy: StorePolicy = DEFAULT_POLICY) -> None:
        """Opens the store: makes its folders, removes what a crash left half-written.

        Raises:
            OSError: the file system refuses.
        """
        self._disk = disk
        self._policy = policy
        for folder in (PIECES, ARRIVING):
            disk.make_folder(folder)
        with disk.locked():  # nobody writes now: whatever is arriving, arrives no more
            for left in disk.files(ARRIVING):
                disk.remove(ARRIVING, left.name)

    def put(self, digest: bytes, data: bytes | bytearray) -> None:
        """Keep a piece; when this returns, it survives whatever happens. One that is there already is kept as it is.

        Raises:
            CheckpointError: the bytes are not the digest's; nothing was written. DiskFull: no room, and nothing that
            may be evicted. OSError: the file system refuses.
        """
        name = digest.hex()
        if digest_bytes(data) != digest:
            raise CheckpointError(name[:16], None, "not the bytes of this piece")
        with self._disk.locked():
            if self._verified(digest) is not None:
                return
            self._make_room(len(data))
            try:
                self._write(name, data)
            except OSError as error:
                self._disk.remove(ARRIVING, name)
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise DiskFull(f"no room for a piece of {len(data)} bytes: {error.strerror}") from error
                raise

    def read(self, digest: bytes) -> bytearray | None:
        """A piece's bytes, hashed after they were read; None: it is not here, or was damaged and is here no more."""
        data = self._verified(digest)
        if data is None:
            self._remove_damaged(digest)
        else:
            self._disk.mark_used(PIECES, digest.hex())
        return data

    def adopt(self, digest: bytes, folder: str, name: str) -> None:
        """As `put`, of a file of this disk that nobody writes any more; it is no longer there then.

        Raises:
            As `put`; where there is no room the file stays.
        """
        found = self._ranged(folder, name)
        if found is None or found.digest() != digest:
            raise CheckpointError(digest.hex()[:16], None, "not the bytes of this piece")
        with self._disk.locked():
            if not self.has(digest):
                self._make_room(len(found))
                self._disk.sync_file(folder, name)
                self._disk.rename(folder, name, PIECES, digest.hex())
                self._disk.sync_folder(PIECES)
            else:
                self._disk.remove(folder, name)

    def ranged(self, digest: bytes) -> RangedPiece | None:
        """A piece to be read by ranges, hashed now, step by step; None: it is not here, or was damaged and is here no
        more.
        """
        found = self._ranged(PIECES, digest.hex())
        if found is not None and found.digest() != digest:
            self._remove_damaged(digest)
            return None
        self._disk.mark_used(PIECES, digest.hex())
        return found

    def read_range(self, digest: bytes, begin: int, size: int) -> bytearray | None:
        """A part of a piece, NOT verified: whoever asks hashes what he makes of it. None: not here, or not so long."""
        data = self._disk.read_range(PIECES, digest.hex(), begin, size)
        self._disk.mark_used(PIECES, digest.hex())
        return data if data is not None and len(data) == size else None

    def has(self, digest: bytes) -> bool:
        """Whether a piece is there by name; whether it is whole, `read` says."""
        return self._disk.find(PIECES, digest.hex()) is not None

    def pieces(self) -> list[StoredPiece]:
        """What is there by name, in order of digest."""
        found = [file for file in self._disk.files(PIECES) if _NAME.fullmatch(file.name)]
        return [
            StoredPiece(bytes.fromhex(file.name), file.size_bytes, file.used_at_ns)
            for file in sorted(found, key=lambda file: file.name)
        ]

    @property
    def size_bytes(self) -> int:
        """Bytes of all pieces."""
        return sum(piece.size_bytes for piece in self.pieces())

    def remove(self, digests: Iterable[bytes]) -> int:
        """Remove pieces; returns the bytes that came free."""
        sizes, freed = {piece.digest: piece.size_bytes for piece in self.pieces()}, 0
        with self._disk.locked():
            for digest in digests:
                if digest in sizes:
                    self._disk.remove(PIECES, digest.hex())
                    freed += sizes[digest]
            self._disk.sync_folder(PIECES)
        return freed

    def verify(self, digests: Iterable[bytes]) -> list[bytes]:
        """Read and hash pieces; returns those that were damaged, which are gone now. Missing ones are not damaged."""
        there = {piece.digest for piece in self.pieces()}
        return [digest for digest in digests if digest in there and self.ranged(digest) is None]

    def _ranged(self, folder: str, name: str) -> RangedPiece | None:
        file = self._disk.find(folder, name)

        def read(begin: int, size: int) -> bytearray:
            data = self._disk.read_range(folder, name, begin, size)
            if data is None or len(data) != size:
                raise FileNotFoundError(errno.ENOENT, "evicted, or cut short, meanwhile", name)
            return data

        return None if file is None else RangedPiece(b"", file.size_bytes, read)

    def _verified(self, digest: bytes) -> bytearray | None:
        data = self._disk.read(PIECES, digest.hex())
        return data if data is not None and digest_bytes(data) == digest else None

    def _remove_damaged(self, digest: bytes) -> None:
        if not self.has(digest):
            return
        with self._disk.locked():  # and looks again: a writer may have put a good one in its place meanwhile
            found = self._ranged(PIECES, digest.hex())
            if found is not None and found.digest() != digest:
                self._disk.remove(PIECES, digest.hex())

    def _write(self, name: str, data: bytes | bytearray) -> None:
        self._disk.write(ARRIVING, name, data)
        self._disk.sync_file(ARRIVING, name)
        self._disk.rename(ARRIVING, name, PIECES, name)
        self._disk.sync_folder(PIECES)

    def _make_room(self, size_bytes: int) -> None:
        cap = self._policy.cap_bytes
        if cap is None:
            return
        there, pinned = self.pieces(), self._policy.pinned()
        excess = sum(piece.size_bytes for piece in there) + size_bytes - cap
        may_go = sorted((piece for piece in there if piece.digest not in pinned), key=self._policy.order)
        going = []
        for piece in may_go:
            if excess <= 0:
                break
            going.append(piece)
            excess -= piece.size_bytes
        if excess > 0:
            raise DiskFull(f"a piece of {size_bytes} bytes does not fit the cap of {cap} beside what must stay")
        for piece in going:
            self._disk.remove(PIECES, piece.digest.hex())
        if going:  # durably, before the new one is: else a power cut brings them back, and the cap is passed
            self._disk.sync_folder(PIECES)
