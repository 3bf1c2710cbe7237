"""A published checkpoint far away: only the bytes of the pieces that are wanted.

An expert of DeepSeek-V3 costs one or two ranges of 44 MB in all; where they are, `places.py` knows, and if what it goes
by turns out to be of other files, is told to ask again before the source is blamed. Knows names and places; knows no
network (`sources.RangeReader`) and whether nothing of it is true.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from shoal.experts.checkpoint import TORCH_DTYPES, StoredTensor
from shoal.experts.digest import digest_bytes, head_of
from shoal.experts.manifest import Manifest
from shoal.experts.pieces.encoding import encode_piece
from shoal.experts.pieces.kept import Kept
from shoal.experts.pieces.pieces import ExpertPiece, Piece
from shoal.experts.pieces.places import Places, unheard
from shoal.experts.pieces.sources import OnBytes, RangeReader
from shoal.experts.safetensors_header import ITEM_BYTES, LENGTH_BYTES
from shoal.experts.shard import SCALE_DTYPES
from shoal.experts.specs import PROJECTIONS, ExpertLayout, ModelSpec
from shoal.experts.stacked_experts import BLOCKS
from shoal.experts.weight_formats import stored_bytes
from shoal.protocol.errors import CheckpointError, ModelNotFound, ShoalError, SourceFailed
from shoal.protocol.messages import WeightFormat

MEASURED_BYTES = 4 * 1024 * 1024
"""What a forecast of the time costs: a tenth of an expert."""

MAX_EXPERT_EXCESS = 1.25
"""Of the size that shape and format ask for: scales may be stored wider than we would."""


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of a piece, or one item of a stacked one."""

    tensor: str
    index: int | None = None

    @property
    def name(self) -> str:
        return self.tensor if self.index is None else f"{self.tensor}[{self.index}]"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a part's bytes are."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    size_bytes: int


class CheckpointSource:
    """`PieceSource` over the files of a checkpoint in its published layout."""

    def __init__(
        self,
        reader: RangeReader,
        manifest: Manifest,
        spec: ModelSpec,
        kept: Kept | None = None,
        layout: bytes | None = None,
    ) -> None:
        """`spec`: of the model's config, its layers those of the manifest. kept: what this source said before; None:
        nothing is kept. layout: of `layout.py`, if the model came with one."""
        self._reader = reader
        self._manifest = manifest
        self._spec = spec
        self._tensors = Places(reader, kept, layout)

    @property
    def name(self) -> str:
        return self._reader.name

    @property
    def bytes_read(self) -> int:
        return self._reader.bytes_read

    async def size(self, piece: Piece) -> int:
        return sum(place.size_bytes for place in await self._places(piece))

    async def measure(self, piece: Piece) -> float:
        """Bytes per second of a part of this piece, which is thrown away. Raises as `fetch`."""
        place = max(await self._places(piece), key=lambda place: place.size_bytes)
        clock = asyncio.get_running_loop()
        begun_s, size = clock.time(), min(place.size_bytes, MEASURED_BYTES)
        await self._reader.read_range(place.file, place.begin, size, unheard)
        return size / max(clock.time() - begun_s, 1e-6)

    def keep(self) -> None:
        """The model is on the shelf now: keep there what was read of index and headers. Blocking."""
        self._tensors.keep()

    async def piece_bytes(self, piece: Piece) -> int:
        """Of its encoding, exactly: what it takes in a store. Raises as `fetch`."""
        places = await self._places(piece)
        return sum(
            len(head_of(place.name, place.dtype, place.shape, place.size_bytes)) + place.size_bytes for place in places
        )

    async def fetch(self, piece: Piece, on_bytes: OnBytes) -> bytearray:
        places, arrived = await self._places(piece), 0

        def count(size_bytes: int) -> None:
            nonlocal arrived
            arrived += size_bytes
            on_bytes(size_bytes)

        failure: ModelNotFound | CheckpointError | SourceFailed | None = None
        try:
            data = await self._read(places, count)
            if self._tensors.is_certain or await asyncio.to_thread(digest_bytes, data) == piece.digest:
                return data
        except (ModelNotFound, CheckpointError, SourceFailed) as error:
            if self._tensors.is_certain or not await self._is_stale(places, error):
                raise
            failure = error
        await self._tensors.read_anew()
        again = await self._places(piece)
        if again != places:
            on_bytes(-arrived)
            return await self._read(again, on_bytes)
        if failure is not None:
            raise failure
        return data

    async def _is_stale(self, places: Sequence[_Place], error: Exception) -> bool:
        """Whether what we go by may be of other files; a line that broke says nothing of them."""
        if not isinstance(error, SourceFailed):
            return True
        file = places[0].file
        try:
            _, file_bytes = await self._reader.read_range(file, 0, LENGTH_BYTES, unheard)
        except ShoalError:
            return False
        return file_bytes != self._tensors.size_of(file)

    async def _read(self, places: Sequence[_Place], on_bytes: OnBytes) -> bytearray:
        tensors = {}
        for run in _runs(places):
            begin, size = run[0].begin, sum(place.size_bytes for place in run)
            data = (await self._reader.read_range(run[0].file, begin, size, on_bytes))[0] if size else bytearray()
            for place in run:
                offset = place.begin - begin
                tensors[place.name] = _tensor(place, memoryview(data)[offset : offset + place.size_bytes])
        return await asyncio.to_thread(encode_piece, [tensors[place.name] for place in places])

    async def _places(self, piece: Piece) -> list[_Place]:
        try:
            return await self._said_places(piece)
        except (ModelNotFound, CheckpointError):
            if self._tensors.is_certain:
                raise
            await self._tensors.read_anew()
            return await self._said_places(piece)

    async def _said_places(self, piece: Piece) -> list[_Place]:
        parts = parts_of(piece, self._manifest.weight_format, self._spec)
        places = [await self._place(part) for part in parts]
        total = sum(place.size_bytes for place in places)
        if total > self._most(piece):
            raise CheckpointError(self.name, piece.name, f"{total} bytes, far more than it can have")
        return places

    def _most(self, piece: Piece) -> int:
        if isinstance(piece, ExpertPiece):
            return int(stored_bytes(self._spec.expert, self._manifest.weight_format) * MAX_EXPERT_EXCESS) + 4096
        leaf = self._manifest.trunk[piece.name]
        return prod(leaf.shape) * ITEM_BYTES[leaf.dtype]

    async def _place(self, part: Part) -> _Place:
        found = await self._tensors.find(part.tensor)
        begin, size, shape = found.begin, found.entry.size_bytes, found.entry.shape
        if part.index is not None:
            if not shape or part.index >= shape[0]:
                raise CheckpointError(self.name, part.tensor, f"shape {list(shape)} has no item {part.index}")
            size, shape = size // shape[0], shape[1:]
            begin += part.index * size
        return _Place(part.name, found.file, found.entry.dtype, shape, begin, size)


def parts_of(piece: Piece, weight_format: WeightFormat, spec: ModelSpec) -> list[Part]:
    """A piece's tensors, in the order of its digest (`shard.expert_tensor_names`, `stacked_experts`)."""
    if not isinstance(piece, ExpertPiece):
        return [Part(piece.name)]
    layer, expert = piece.layer, piece.expert
    if spec.names.layout is ExpertLayout.STACKED:
        gate_up, down = (spec.expert_tensor(layer, expert, projection) for projection in ("gate", "down"))
        suffixes = (BLOCKS, "_scales") if weight_format is WeightFormat.MXFP4 else ("",)
        weights = [stem + suffix for stem in (gate_up, down) for suffix in suffixes]
        return [Part(name, expert) for name in (*weights, f"{gate_up}_bias", f"{down}_bias")]
    names = []
    for projection in PROJECTIONS:
        names.append(spec.expert_tensor(layer, expert, projection))
        if weight_format in SCALE_DTYPES:
            names.append(spec.expert_scale_tensor(layer, expert, projection))
    return [Part(name) for name in names]


def _runs(places: Sequence[_Place]) -> list[list[_Place]]:
    """Places in the order of the files, those that touch each other together: one request each."""
    runs: list[list[_Place]] = []
    for place in sorted(places, key=lambda place: (place.file, place.begin, place.size_bytes)):
        last = runs[-1][-1] if runs else None
        if last is not None and last.file == place.file and last.begin + last.size_bytes == place.begin:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _tensor(place: _Place, raw: memoryview) -> StoredTensor:
    data = torch.empty(place.size_bytes, dtype=torch.uint8)
    data.numpy().data[:] = raw
    return StoredTensor(place.name, place.file, place.dtype, data.view(TORCH_DTYPES[place.dtype]).view(place.shape))
