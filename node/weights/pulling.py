"""Bring a model, or a part of it, into this machine's store: what it takes, how long, and then the pieces.

Used by `shoal models pull` and `import`, and by a node that lacks what it is to hold. Knows sources, shelf and
manifest; knows no terminal.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from shoal.experts.family import CONFIG_FILE, MAX_CONFIG_BYTES
from shoal.experts.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, decode_manifest, load_manifest
from shoal.experts.pieces.fetching import Fetched, fetch_pieces
from shoal.experts.pieces.layout import LAYOUT_FILE
from shoal.experts.pieces.model import PieceModel, check_config, spec_of
from shoal.experts.pieces.pieces import ExpertPiece, Piece, expert_pieces, trunk_pieces
from shoal.experts.pieces.pins import Pins
from shoal.experts.pieces.ranges import CheckpointSource
from shoal.experts.pieces.shelf import MAX_SMALL_FILE_BYTES, SMALL_FILES, Shelf, ShelfModel
from shoal.experts.pieces.sources import RangeReader
from shoal.experts.safetensors_header import parse_object
from shoal.experts.specs import ModelSpec
from shoal.node.holdings.assignment import parse_holding
from shoal.node.weights.model_sources import checkpoint_sources, full_word, open_readers, sources_of
from shoal.protocol.errors import CheckpointError, ModelNotFound, ShoalError

NOTHING = "none"
"""In the place of words that name experts."""

PullProgress = Callable[[int, int], None]
"""(bytes that arrived, bytes in all)."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants of a model."""

    name: str
    sources: tuple[str, ...] = ()
    """As `model_sources.py` reads them; none: where the model came from last."""
    experts: str = "all"
    """As for `shoal node --experts`, or `none`."""
    has_trunk: bool = True
    root: bytes | None = None
    """The root that is trusted; None: whatever the manifest says."""
    manifest: Path | None = None
    """None: the shelf's, or the one beside the weights."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What fulfilling a wish takes."""

    name: str
    root: bytes
    pieces: tuple[Piece, ...]
    missing: tuple[Piece, ...]
    missing_bytes: int
    free_bytes: int
    """On the store's disk."""
    num_nowhere: int = 0
    """Of the missing ones, those that no peer and no source has now; told of peers."""


@dataclass(frozen=True, slots=True)
class Pull:
    """A plan with its sources open."""

    plan: Plan
    sources: tuple[CheckpointSource, ...]
    shelf: Shelf
    put_on_shelf: Callable[[], object]
    """Makes the model known on this machine; a plan alone leaves nothing behind."""

    def _put_on_shelf(self) -> None:
        self.put_on_shelf()
        for source in self.sources:
            source.keep()

    async def forecast_s(self) -> float | None:
        """Seconds that the missing pieces will take, by the rate of a part of one from each source; None: no rate."""
        if not self.plan.missing:
            return 0.0
        rates = [rate for source in self.sources if (rate := await _rate(source, self.plan.missing[0])) is not None]
        return self.plan.missing_bytes / sum(rates) if rates else None

    async def run(self, progress: PullProgress) -> Fetched:
        """Fetch what is missing; what was wished for is not evicted meanwhile. Raises as `fetch_pieces`."""

        def tell(arrived: int) -> None:
            progress(arrived, self.plan.missing_bytes)

        await asyncio.to_thread(self._put_on_shelf)
        with Pins(self.shelf.disk) as pins:
            await asyncio.to_thread(pins.hold, "pull", [piece.digest for piece in self.plan.pieces])
            return await fetch_pieces(self.plan.missing, self.sources, self.shelf.store, progress=tell)


@asynccontextmanager
async def planned(wish: Wish, shelf: Shelf) -> AsyncIterator[Pull]:
    """Find the model's manifest and config, and say what is missing. No weight is read, and nothing is kept yet.

    Raises:
        InvalidRequest, ModelNotFound: no such source, model, manifest or expert. CheckpointError: files that are not
        the manifest's. As `open_readers`.
    """
    known = next((model for model in shelf.models() if model.name == wish.name), None)
    words = wish.sources or (known.sources if known else ())
    async with open_readers(words) as readers:
        manifest = await _manifest(wish, known, readers)
        if wish.root is not None and not manifest.root.startswith(wish.root):
            raise CheckpointError(MANIFEST_FILE, None, f"its root is {manifest.root.hex()}, not {wish.root.hex()}…")
        files = _shelved_files(known, manifest) or await _small_files(readers, manifest)
        config = parse_object(files[CONFIG_FILE], CONFIG_FILE)
        spec = spec_of(config, manifest)
        shelf.check(wish.name, manifest.root)
        sources = checkpoint_sources(readers, manifest, spec, shelf, files.get(LAYOUT_FILE))
        pieces = wished_pieces(wish, manifest, spec)
        kept = [full_word(word) for word in words]
        plan = await _plan(wish.name, manifest.root, pieces, sources, shelf)
        yield Pull(plan, sources, shelf, lambda: shelf.add(wish.name, manifest, files, kept))


def wished_pieces(wish: Wish, manifest: Manifest, spec: ModelSpec) -> list[Piece]:
    """The pieces of a wish. Raises InvalidRequest: there is no such expert."""
    holding = {} if wish.experts == NOTHING else parse_holding(wish.experts, spec)
    wanted = [(layer, expert) for layer, experts in holding.items() for expert in experts]
    return [*expert_pieces(manifest, wanted), *(trunk_pieces(manifest) if wish.has_trunk else ())]


async def fill(model: PieceModel, holding: Sequence[ExpertPiece], progress: PullProgress) -> Fetched:
    """Fetch experts that a model on the shelf lacks, from where it came.

    Raises:
        As `planned` and `fetch_pieces`.
    """
    async with open_readers(model.model.sources) as readers:
        sources = sources_of(model, readers)
        plan = await _plan(model.name, model.manifest.root, holding, sources, model.shelf)
        return await Pull(plan, sources, model.shelf, lambda: None).run(progress)


async def _plan(
    name: str, root: bytes, pieces: Sequence[Piece], sources: Sequence[CheckpointSource], shelf: Shelf
) -> Plan:
    there = {piece.digest for piece in await asyncio.to_thread(shelf.store.pieces)}
    missing = tuple({piece.digest: piece for piece in pieces if piece.digest not in there}.values())
    size_bytes = sum([await _size(sources, piece) for piece in missing])
    return Plan(name, root, tuple(pieces), missing, size_bytes, shutil.disk_usage(shelf.root).free)


async def _size(sources: Sequence[CheckpointSource], piece: Piece) -> int:
    """A piece's size, by the first source that says one."""
    failure: ShoalError = ModelNotFound(f"no source has {piece.name}")
    for source in sources:
        try:
            return await source.size(piece)
        except ShoalError as error:
            failure = error
    raise failure


async def _rate(source: CheckpointSource, piece: Piece) -> float | None:
    try:
        return await source.measure(piece)
    except ShoalError:
        return None


async def _manifest(wish: Wish, known: ShelfModel | None, readers: Sequence[RangeReader]) -> Manifest:
    if wish.manifest is not None:
        return await asyncio.to_thread(load_manifest, wish.manifest)
    if known is not None:
        return await asyncio.to_thread(known.manifest)
    raw = await _first(readers, MANIFEST_FILE, MAX_MANIFEST_BYTES)
    if raw is None:
        raise ModelNotFound(
            f"{readers[0].name} ships no {MANIFEST_FILE}; give one by --manifest; the checkpoint's owner makes it:"
            " shoal manifest make DIRECTORY"
        )
    return await asyncio.to_thread(decode_manifest, raw)


def _shelved_files(known: ShelfModel | None, manifest: Manifest) -> dict[str, bytes]:
    """Config and layout of a model that is on the shelf: what came with it need not come again. Empty: it is not, or
    its config is another than the manifest's."""
    if known is None or known.root != manifest.root:
        return {}
    files = {name: known.directory / name for name in (CONFIG_FILE, LAYOUT_FILE)}
    found = {name: path.read_bytes() for name, path in files.items() if path.is_file()}
    try:
        check_config(parse_object(found.get(CONFIG_FILE, b""), CONFIG_FILE), manifest)
    except CheckpointError:
        return {}
    return found


async def _small_files(readers: Sequence[RangeReader], manifest: Manifest) -> dict[str, bytes]:
    """config.json, which must be the manifest's, and whatever else of `SMALL_FILES` there is."""
    config = await _first(readers, CONFIG_FILE, MAX_CONFIG_BYTES)
    if config is None:
        raise ModelNotFound(f"{readers[0].name} has no {CONFIG_FILE}")
    check_config(parse_object(config, CONFIG_FILE), manifest)
    found = {name: await _first(readers, name, MAX_SMALL_FILE_BYTES) for name in (*SMALL_FILES, LAYOUT_FILE)}
    return {CONFIG_FILE: config} | {name: data for name, data in found.items() if data is not None}


async def _first(readers: Sequence[RangeReader], file: str, max_bytes: int) -> bytes | None:
    """A small file from the first reader that has it.

    Raises:
        SourceFailed, SourceBusy, AccessRefused: none has it, and one may have had it.
    """
    failure: ShoalError | None = None
    for reader in readers:
        try:
            return await reader.read_file(file, max_bytes)
        except ModelNotFound:
            continue
        except ShoalError as error:
            failure = error
    if failure is not None:
        raise failure
    return None
