"""The seams to where pieces come from: a source of pieces, and the reader of byte ranges under most of them.

Implementations of `RangeReader`: a folder (here), an HTTP server or a Hugging Face repository (`protocol/net`).
`CheckpointSource` (`ranges.py`) makes a source of pieces out of any of them. Nothing that comes from here is trusted:
`fetching.py` has every byte checked.
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from shoal.experts.pieces.arriving import Arrival
from shoal.experts.pieces.pieces import Piece
from shoal.protocol.errors import ModelNotFound, SourceFailed

OnBytes = Callable[[int], None]
"""Told of every part that arrives: its bytes."""


class PieceSource(Protocol):
    """Somebody who may have pieces of one model."""

    @property
    def name(self) -> str:
        """What errors and progress call it; without tokens or passwords."""

    @property
    def bytes_read(self) -> int:
        """Bytes that came from it so far, whatever for."""

    async def size(self, piece: Piece) -> int:
        """Bytes that fetching this piece will take. Raises as `fetch`."""

    async def fetch(self, piece: Piece, on_bytes: OnBytes) -> bytearray | Arrival:
        """A piece's bytes, unverified; a large one as a file of the store's disk, which the caller closes.

        Raises:
            ModelNotFound: it does not have this piece. SourceFailed: unreachable, stalled, broke off. SourceBusy: come
            back later. AccessRefused: not with this token. CheckpointError: what it says of itself is not consistent.
        *Cancellation:* nothing stays behind; what has arrived of the piece is lost.
        """


class PeerSource(PieceSource, Protocol):
    """All the peers that may give pieces, behind one face. Never dropped: peers come and go, and it judges them itself.

    `fetch` verifies, and raises what one peer's fault was; `has_now` knows of it from then on.
    """

    def num_streams(self, num_pieces: int) -> int:
        """Pieces at a time, of one that wants so many."""

    def has_now(self, piece: Piece) -> bool:
        """Whether some peer can be asked for it at this moment."""

    def rarity(self, piece: Piece) -> tuple[int, bytes]:
        """What comes first, the smallest: who has it, and an order of our own, so that not all take the same first."""

    def turn(self, piece: Piece) -> tuple[int, bytes] | None:
        """When the other sources are asked for it, the smallest first; None: not now, for peers have it or will."""

    def goes_elsewhere(self, piece: Piece, is_coming: bool) -> None:
        """Another source is being asked for it, or did not give it."""

    def note_left(self, num_pending: int, elsewhere_s: float) -> None:
        """num_pending: pieces that are neither here nor on their way. elsewhere_s: what one takes from another source
        that has nothing to do now; infinity: there is none, or it has brought nothing yet."""


class RangeReader(Protocol):
    """Files of a published checkpoint, by byte ranges."""

    @property
    def name(self) -> str:
        """What errors call it; without tokens or passwords."""

    @property
    def bytes_read(self) -> int:
        """Bytes of bodies that came so far."""

    async def read_file(self, file: str, max_bytes: int) -> bytes:
        """A whole small file. Raises as `PieceSource.fetch`; SourceFailed if it is larger than `max_bytes`."""

    async def read_range(self, file: str, begin: int, size: int, on_bytes: OnBytes) -> tuple[bytearray, int]:
        """`size` > 0 bytes from `begin`, exactly, and the length of the whole file. Raises as `PieceSource.fetch`."""


class FolderReader:
    """A directory: a disk, a USB stick, a share."""

    def __init__(self, directory: Path) -> None:
        """Opens nothing yet."""
        self._directory = directory
        self._bytes_read = 0

    @property
    def name(self) -> str:
        return str(self._directory)

    @property
    def bytes_read(self) -> int:
        return self._bytes_read

    async def read_file(self, file: str, max_bytes: int) -> bytes:
        size = await asyncio.to_thread(self._size, file)
        if size > max_bytes:
            raise SourceFailed(self.name, f"{file} has {size} bytes, at most {max_bytes} are expected")
        return bytes((await self.read_range(file, 0, size, lambda _: None))[0]) if size else b""

    async def read_range(self, file: str, begin: int, size: int, on_bytes: OnBytes) -> tuple[bytearray, int]:
        data, file_bytes = await asyncio.to_thread(self._read, file, begin, size)
        self._bytes_read += len(data)
        on_bytes(len(data))
        return data, file_bytes

    def _size(self, file: str) -> int:
        try:
            return (self._directory / file).stat().st_size
        except FileNotFoundError:
            raise ModelNotFound(f"{self.name} has no {file}") from None
        except OSError as error:
            raise SourceFailed(self.name, f"{file}: {error.strerror}") from error

    def _read(self, file: str, begin: int, size: int) -> tuple[bytearray, int]:
        file_bytes = self._size(file)
        try:
            descriptor = os.open(self._directory / file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return self._read_exactly(descriptor, file, begin, size), file_bytes
            finally:
                os.close(descriptor)
        except OSError as error:
            raise SourceFailed(self.name, f"{file}: {error.strerror}") from error

    def _read_exactly(self, descriptor: int, file: str, begin: int, size: int) -> bytearray:
        data, done = bytearray(size), 0
        view = memoryview(data)
        while done < size:
            count = os.preadv(descriptor, [view[done:]], begin + done)
            if count == 0:
                raise SourceFailed(self.name, f"{file} ends at {begin + done}, {begin + size} bytes were expected")
            done += count
        return data
