"""Index and headers are read once: kept, or told by a layout; and neither is believed when the bytes say otherwise."""

import asyncio
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.experts.family import model_spec, read_config
from shoal.experts.manifest import Manifest
from shoal.experts.manifest_maker import Making, make_manifest
from shoal.experts.pieces.disk import FolderDisk
from shoal.experts.pieces.fetching import FetchSettings, fetch_pieces
from shoal.experts.pieces.kept import FOLDER, MAX_SOURCES, Kept
from shoal.experts.pieces.layout import LAYOUT_FILE, write_layout
from shoal.experts.pieces.pieces import Piece, all_experts, expert_pieces
from shoal.experts.pieces.ranges import CheckpointSource
from shoal.experts.pieces.store import PieceStore
from shoal.protocol.errors import ShoalError, SourceLied
from shoal.protocol.net.http_files import HttpPatience, http_client, mirror
from shoal.simulations.local_hub import COMMIT, REPOSITORY, Fault, local_hub
from tests.checkpoints import CheckpointShape, write_checkpoint

PATIENCE = HttpPatience(connect_s=60, stall_s=60)
SETTINGS = FetchSettings(pause_s=0.0)
SHAPE = CheckpointShape(hidden=128, inter=128, num_layers=3, max_shard_size="1MB")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """One model in two divisions into files."""
    folder = tmp_path_factory.mktemp("models")
    for name, size in (("one", "1MB"), ("two", "2MB")):
        write_checkpoint(folder / name, replace(SHAPE, max_shard_size=size), seed=4)
        write_layout(folder / name)
    yield folder / "one", folder / "two"
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def manifest(models: tuple[Path, Path]) -> Manifest:
    made = [make_manifest(model, making=Making(is_probed=False)) for model in models]
    assert made[0].root == made[1].root, "how it is divided is not part of what it is"
    return made[0]


@pytest.fixture
def shelved(tmp_path: Path) -> Path:
    (tmp_path / "shelved").mkdir()
    return tmp_path / "shelved"


def experts_of(manifest: Manifest) -> list[Piece]:
    return list(expert_pieces(manifest, all_experts(manifest)))


def fetched(
    model: Path,
    manifest: Manifest,
    pieces: list[Piece],
    store: Path,
    kept: Path | None,
    layout: Path | None = None,
    fault: Fault | None = None,
) -> tuple[int, ShoalError | None]:
    """Fetch from a mirror of `model`. Returns the bytes that it sent beside the pieces, and why it was dropped."""

    async def run() -> tuple[int, ShoalError | None]:
        async with local_hub(model) as hub, http_client(PATIENCE) as client:
            hub.faults_always = fault
            reader = mirror(client, f"{hub.endpoint}/{REPOSITORY}/resolve/{COMMIT}/")
            raw = None if layout is None else (layout / LAYOUT_FILE).read_bytes()
            source = CheckpointSource(
                reader, manifest, model_spec(read_config(model)), Kept(kept, "the mirror"), raw
            )  # fmt: skip
            try:
                done = await fetch_pieces(pieces, [source], PieceStore(FolderDisk(store)), SETTINGS)
            except ShoalError as error:
                return hub.body_bytes, error
            sizes = sum([await source.size(piece) for piece in pieces])
            return hub.body_bytes - sizes, done.sources[0].dropped

    return asyncio.run(run())


def test_index_and_headers_are_read_once_for_all_fetches_of_a_machine(
    models: tuple[Path, Path], manifest: Manifest, tmp_path: Path, shelved: Path
) -> None:
    pieces = experts_of(manifest)
    first, _ = fetched(models[0], manifest, pieces[:8], tmp_path / "a", shelved)
    second, _ = fetched(models[0], manifest, pieces[:8], tmp_path / "b", shelved)
    assert first > 0
    assert second == 0


def test_with_the_models_layout_not_even_the_first_fetch_reads_them(
    models: tuple[Path, Path], manifest: Manifest, tmp_path: Path
) -> None:
    pieces = experts_of(manifest)
    assert fetched(models[0], manifest, pieces, tmp_path / "a", None, models[0]) == (0, None)
    assert PieceStore(FolderDisk(tmp_path / "a")).verify([piece.digest for piece in pieces]) == []


def test_what_was_kept_and_is_damaged_is_read_again(
    models: tuple[Path, Path], manifest: Manifest, tmp_path: Path, shelved: Path
) -> None:
    pieces = experts_of(manifest)[:4]
    first, _ = fetched(models[0], manifest, pieces, tmp_path / "a", shelved)
    for path in (shelved / FOLDER).glob("*/*"):
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    assert fetched(models[0], manifest, pieces, tmp_path / "b", shelved) == (first, None)
    assert fetched(models[0], manifest, pieces, tmp_path / "c", shelved) == (0, None)


@pytest.mark.parametrize("is_kept", [False, True], ids=["a layout", "what was kept"])
def test_a_source_whose_files_are_others_is_asked_again_and_not_blamed(
    models: tuple[Path, Path], manifest: Manifest, tmp_path: Path, shelved: Path, is_kept: bool
) -> None:
    pieces = experts_of(manifest)
    if is_kept:
        fetched(models[0], manifest, pieces, tmp_path / "a", shelved)
    wasted, dropped = fetched(models[1], manifest, pieces, tmp_path / "b", shelved, None if is_kept else models[0])
    assert dropped is None
    assert wasted > 0
    assert PieceStore(FolderDisk(tmp_path / "b")).verify([piece.digest for piece in pieces]) == []
    assert fetched(models[1], manifest, pieces, tmp_path / "c", shelved) == (0, None), "and that is kept then"


@pytest.mark.parametrize("is_kept", [False, True], ids=["a layout", "what was kept"])
def test_a_source_that_lies_is_found_out_whatever_tells_the_places(
    models: tuple[Path, Path], manifest: Manifest, tmp_path: Path, shelved: Path, is_kept: bool
) -> None:
    pieces = experts_of(manifest)[:1]
    if is_kept:
        fetched(models[0], manifest, pieces, tmp_path / "a", shelved)
    wrong = tmp_path / "wrong"
    shutil.copytree(models[0], wrong)
    for path in wrong.glob("*.safetensors"):
        raw = bytearray(path.read_bytes())
        header_bytes = int.from_bytes(raw[:8], "little")
        raw[8 + header_bytes :] = bytes(byte ^ 1 for byte in raw[8 + header_bytes :])
        path.write_bytes(raw)
    _, dropped = fetched(wrong, manifest, pieces, tmp_path / "b", shelved, None if is_kept else models[0])
    assert isinstance(dropped, SourceLied)
    assert PieceStore(FolderDisk(tmp_path / "b")).pieces() == []


def test_a_line_that_breaks_says_nothing_against_what_was_kept(
    models: tuple[Path, Path], manifest: Manifest, tmp_path: Path, shelved: Path
) -> None:
    pieces = experts_of(manifest)[:4]
    fetched(models[0], manifest, pieces, tmp_path / "a", shelved)
    _, dropped = fetched(models[0], manifest, pieces, tmp_path / "b", shelved, fault=Fault.BROKEN)
    assert dropped is not None
    assert fetched(models[0], manifest, pieces, tmp_path / "c", shelved) == (0, None)


def test_nothing_is_kept_of_a_model_that_is_not_on_the_shelf_until_it_is(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "model", "a source")
    kept.put("a", b"one")
    assert kept.get("a") == b"one"
    assert not (tmp_path / "model").exists()
    (tmp_path / "model").mkdir()
    kept.settle()
    again = Kept(tmp_path / "model", "a source")
    assert (again.get("a"), again.get("b")) == (b"one", None)
    assert Kept(tmp_path / "model", "another").get("a") is None
    again.forget()
    assert Kept(tmp_path / "model", "a source").get("a") is None


def test_few_sources_of_a_model_are_kept(tmp_path: Path) -> None:
    for number in range(MAX_SOURCES + 3):
        Kept(tmp_path, f"source {number}").put("a", b"%d" % number)
    there = list((tmp_path / FOLDER).iterdir())
    assert len(there) == MAX_SOURCES
    assert Kept(tmp_path, f"source {MAX_SOURCES + 2}").get("a") is not None


def test_a_disk_that_refuses_costs_the_next_fetch_the_reading_and_this_one_nothing(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("no folder")
    kept = Kept(tmp_path, "a source")
    kept.put("a", b"one")
    assert kept.get("a") == b"one"
    assert Kept(tmp_path, "a source").get("a") is None
