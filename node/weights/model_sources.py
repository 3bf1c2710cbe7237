"""From words to sources of pieces: a folder, a mirror's URL, a Hugging Face repository.

    /media/stick/DeepSeek-V3.1 · http://10.0.0.5:8000/DeepSeek-V3.1 · hf:deepseek-ai/DeepSeek-V3.1@COMMIT

Shared by the node, which fills its store, and `shoal models`. Knows words and readers; knows no models.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2

from shoal.experts.manifest import Manifest
from shoal.experts.pieces.layout import LAYOUT_FILE
from shoal.experts.pieces.model import PieceModel
from shoal.experts.pieces.ranges import CheckpointSource
from shoal.experts.pieces.shelf import Shelf
from shoal.experts.pieces.sources import FolderReader, RangeReader
from shoal.experts.specs import ModelSpec
from shoal.protocol.errors import InvalidRequest, ModelNotFound, ShoalError
from shoal.protocol.net.http_files import http_client, mirror
from shoal.protocol.net.hub import HubAccess, HubRepository, cached_snapshot, hub_access, open_hub

HUB = "hf:"


@asynccontextmanager
async def open_readers(words: Sequence[str]) -> AsyncIterator[list[RangeReader]]:
    """Readers of all these sources that can be opened; folders first.

    Raises:
        InvalidRequest, ModelNotFound, AccessRefused, SourceFailed, SourceBusy: none could; the last one's reason.
    """
    async with http_client() as client:
        readers: list[RangeReader] = []
        failure: ShoalError = InvalidRequest("no source is given; try: --from hf:OWNER/NAME, --from URL or a directory")
        for word in sorted(words, key=_is_remote):
            try:
                readers += await _open(word, client)
            except ShoalError as error:
                failure = error
        if not readers:
            raise failure
        yield readers


def checkpoint_sources(
    readers: Iterable[RangeReader], manifest: Manifest, spec: ModelSpec, shelf: Shelf, layout: bytes | None
) -> tuple[CheckpointSource, ...]:
    """Sources of pieces. What they say of their files is kept on the shelf, but for folders, which are read faster.
    layout: the model's, if it came with one."""
    return tuple(
        CheckpointSource(
            reader,
            manifest,
            spec,
            None if isinstance(reader, FolderReader) else shelf.kept(manifest.root, reader.name),
            layout,
        )
        for reader in readers
    )


def sources_of(model: PieceModel, readers: Iterable[RangeReader]) -> tuple[CheckpointSource, ...]:
    """As `checkpoint_sources`, of a model on the shelf. Blocking, for a moment."""
    return checkpoint_sources(readers, model.manifest, model.spec, model.shelf, _layout_in(model.directory))


def _layout_in(directory: Path) -> bytes | None:
    try:
        return (directory / LAYOUT_FILE).read_bytes()
    except OSError:
        return None


def full_word(word: str) -> str:
    """The word as it can be kept: a folder by its absolute path."""
    return word if _is_remote(word) else str(Path(word).absolute())


def _is_remote(word: str) -> bool:
    return word.startswith((HUB, "http://", "https://"))


async def _open(word: str, client: httpx2.AsyncClient) -> list[RangeReader]:
    if word.startswith(HUB):
        return await _open_repository(HubRepository.parse(word.removeprefix(HUB)), client, hub_access())
    if _is_remote(word):
        return [mirror(client, word)]
    return [_folder(Path(word))]


def _folder(path: Path) -> FolderReader:
    if not path.is_dir():
        raise ModelNotFound(f"no such directory: {path}")
    return FolderReader(path)


async def _open_repository(
    repository: HubRepository, client: httpx2.AsyncClient, access: HubAccess
) -> list[RangeReader]:
    """What huggingface_hub has downloaded already, and the hub for the rest."""
    snapshot = cached_snapshot(repository, access)
    kept: list[RangeReader] = [FolderReader(snapshot)] if snapshot is not None else []
    try:
        return [*kept, await open_hub(client, repository, access)]
    except ShoalError:
        if kept:
            return kept
        raise
