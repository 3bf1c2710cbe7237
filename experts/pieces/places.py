"""Where the tensors of a checkpoint far away are: by the model's layout, by what was kept, or by its index and headers.

The cheapest that there is: what an earlier fetch kept costs nothing, a layout (10 kB for DeepSeek-V3) says everything,
else the source is asked, 8.9 MB of index and 75 kB of header for each file. Neither layout nor what was kept needs to
be true of this source any more: whoever finds that it is not calls `read_anew`, once. Knows names and places; knows no
pieces.
"""

import asyncio
from dataclasses import dataclass

from shoal.experts.checkpoint import INDEX_FILE, SINGLE_FILE, parse_index
from shoal.experts.pieces.kept import Kept
from shoal.experts.pieces.layout import FileLayout, decode_layout
from shoal.experts.pieces.sources import RangeReader
from shoal.experts.safetensors_header import LENGTH_BYTES, MAX_HEADER_BYTES, TensorEntry, parse_header
from shoal.protocol.errors import CheckpointError, ModelNotFound


@dataclass(frozen=True, slots=True)
class Found:
    """A tensor: its file, and where in the file."""

    file: str
    begin: int
    entry: TensorEntry


class Places:
    """The places of one source's tensors."""

    def __init__(self, reader: RangeReader, kept: Kept | None, layout: bytes | None) -> None:
        """kept: what the source said before, or None. layout: the model's, as somebody made it, or None."""
        self._reader = reader
        self._kept = kept
        self._raw_layout = layout
        self._file_of: dict[str, str] | None = None
        self._files: dict[str, FileLayout] = {}
        self._lock = asyncio.Lock()
        self.is_certain = True
        """Whether all that was said came from the source itself, in this run."""

    async def find(self, tensor: str) -> Found:
        """Where a tensor is.

        Raises:
            ModelNotFound: nowhere. CheckpointError: index or header are damaged. Else as `RangeReader`.
        """
        async with self._lock:
            if self._file_of is None:
                self._file_of = await self._read_tables()
            file = self._file_of.get(tensor) if self._file_of else SINGLE_FILE
            if file is None:
                raise ModelNotFound(f"{self._reader.name} has no tensor {tensor}")
            if file not in self._files:
                self._files[file] = await self._read_header(file)
        header = self._files[file]
        entry = header.entries.get(tensor)
        if entry is None:
            raise ModelNotFound(f"{self._reader.name} has no tensor {tensor} in {file}")
        return Found(file, header.data_start + entry.begin, entry)

    def size_of(self, file: str) -> int | None:
        """How long a file is said to be; None: nothing was said of it."""
        header = self._files.get(file)
        return None if header is None else header.size_bytes

    async def read_anew(self) -> None:
        """From now on ask the source itself."""
        async with self._lock:
            if not self.is_certain:
                if self._kept is not None:
                    await asyncio.to_thread(self._kept.forget)
                self._raw_layout, self._file_of, self._files, self.is_certain = None, None, {}, True

    def keep(self) -> None:
        """The model is on the shelf now: keep there what was read. Blocking."""
        if self._kept is not None:
            self._kept.settle()

    async def _read_tables(self) -> dict[str, str]:
        """Which file each tensor is in; empty if there is one file only."""
        kept = await self._said_before(INDEX_FILE)
        if kept is None and self._raw_layout is not None and await self._take_layout(self._raw_layout):
            return {tensor: file for file, each in self._files.items() for tensor in each.entries}
        if kept is not None:
            self.is_certain = False
            return parse_index(kept) if kept else {}
        try:
            raw = await self._reader.read_file(INDEX_FILE, MAX_HEADER_BYTES)
            index = parse_index(raw)
        except ModelNotFound:
            raw, index = b"", {}
        await self._keep(INDEX_FILE, raw)
        return index

    async def _take_layout(self, raw: bytes) -> bool:
        """Whether it is one."""
        try:
            self._files = dict(await asyncio.to_thread(decode_layout, raw))
        except CheckpointError:  # the source's own index says the same, at a price
            return False
        self.is_certain = False
        return True

    async def _read_header(self, file: str) -> FileLayout:
        kept = await self._said_before(file)
        if kept is not None:
            self.is_certain = False
            file_bytes, header = int.from_bytes(kept[:LENGTH_BYTES], "little"), kept[LENGTH_BYTES:]
        else:
            file_bytes, header = await self._ask_header(file)
            stated = file_bytes.to_bytes(LENGTH_BYTES, "little")
            await self._keep(file, stated + header)
        start = LENGTH_BYTES + len(header)
        entries = await asyncio.to_thread(parse_header, header, file_bytes - start, file)
        return FileLayout(start, entries)

    async def _said_before(self, key: str) -> bytes | None:
        return None if self._kept is None else await asyncio.to_thread(self._kept.get, key)

    async def _keep(self, key: str, data: bytes) -> None:
        if self._kept is not None:
            await asyncio.to_thread(self._kept.put, key, data)

    async def _ask_header(self, file: str) -> tuple[int, bytes]:
        """A file's length and its header, of the source."""
        raw, file_bytes = await self._reader.read_range(file, 0, LENGTH_BYTES, unheard)
        header_bytes = int.from_bytes(raw, "little")
        if not 0 < header_bytes <= min(MAX_HEADER_BYTES, file_bytes - LENGTH_BYTES):
            raise CheckpointError(file, None, f"a header of {header_bytes} bytes in a file of {file_bytes}")
        header, _ = await self._reader.read_range(file, LENGTH_BYTES, header_bytes, unheard)
        return file_bytes, bytes(header)


def unheard(size_bytes: int) -> None:
    """Headers are not part of what a user waits for."""
