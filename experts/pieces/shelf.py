"""Which models this machine knows: for each a folder of small files beside the pieces, under its root.

    models/<64 hex digits>/shoal.manifest.json   what its pieces must hash to
    models/<64 hex digits>/config.json           and what small files came with it: tokenizer, generation config
    models/<64 hex digits>/shoal.pieces.json     its name here, and where pieces come from
    models/<64 hex digits>/shoal.layout          where its tensors are in the published files, if somebody said so
    models/<64 hex digits>/layout/…              what sources said of themselves (`kept.py`)

Such a folder is given wherever a checkpoint directory is: `ModelStore.open` knows it by the last of these files. Knows
folders; knows no network.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from shoal.experts.locations import default_cache_dir
from shoal.experts.manifest import MANIFEST_FILE, Manifest, load_manifest, write_manifest
from shoal.experts.pieces.arriving import forget
from shoal.experts.pieces.disk import FolderDisk
from shoal.experts.pieces.kept import Kept
from shoal.experts.pieces.pins import pinned_in
from shoal.experts.pieces.store import EvictionOrder, PieceStore, StorePolicy
from shoal.experts.safetensors_header import parse_object
from shoal.protocol.errors import CheckpointError, InvalidRequest, ModelNotFound

NOTE_FILE = "shoal.pieces.json"

SMALL_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""What a client reads beside the weights, if it is there. Not under the root (ADR 0024)."""

MAX_SMALL_FILE_BYTES = 64 * 1024 * 1024
"""tokenizer.json of Kimi K2, the largest known, has 20 MB."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ROOT = re.compile(r"[0-9a-f]{8,64}")


def default_store_dir() -> Path:
    """The store of this user, unless `SHOAL_STORE` or `--store` say otherwise."""
    return default_cache_dir() / "store"


@dataclass(frozen=True, slots=True)
class ShelfModel:
    """A model that this machine knows; which of its pieces are here is the store's knowledge."""

    name: str
    root: bytes
    directory: Path
    sources: tuple[str, ...]
    """Where its pieces came from last; more may be asked there."""

    def manifest(self) -> Manifest:
        """Its manifest. Raises CheckpointError if it is damaged, or of another root than its folder is named by."""
        manifest = load_manifest(self.directory / MANIFEST_FILE)
        if manifest.root != self.root:
            raise CheckpointError(MANIFEST_FILE, None, f"its root is {manifest.root.hex()}, its folder's another")
        return manifest


class Shelf:
    """The models and pieces below one folder."""

    def __init__(self, root: Path, cap_bytes: int | None = None) -> None:
        """Opens the store at `root`. `cap_bytes`: of all pieces together."""
        self.root = root
        self.disk = FolderDisk(root)
        self.store = PieceStore(self.disk, StorePolicy(cap_bytes=cap_bytes, pinned=lambda: pinned_in(root)))
        (root / "models").mkdir(exist_ok=True)

    def limit(self, cap_bytes: int, order: EvictionOrder) -> None:
        """From now on all pieces together may take so much, and those beyond it go in this order."""
        self.store = PieceStore(self.disk, StorePolicy(cap_bytes, order, lambda: pinned_in(self.root)))

    def add(self, name: str, manifest: Manifest, files: Mapping[str, bytes], sources: Sequence[str]) -> ShelfModel:
        """Put a model on the shelf, or another name and other sources on one that is there.

        Raises:
            InvalidRequest: no name, or another model's.
        """
        self.check(name, manifest.root)
        folder = self.root / "models" / manifest.root.hex()
        if not folder.is_dir():
            self._make(folder, manifest, files)
        _write_note(folder, name, sources)
        return ShelfModel(name, manifest.root, folder, tuple(sources))

    def kept(self, root: bytes, source: str) -> Kept:
        """What a source said of a model's files; it is on disk when the model is on the shelf."""
        return Kept(self.root / "models" / root.hex(), source)

    def check(self, name: str, root: bytes) -> None:
        """Raises InvalidRequest if this is no name, or another model's."""
        check_name(name)
        for other in self.models():
            if other.name == name and other.root != root:
                raise InvalidRequest(f"{name} is another model here, {other.root.hex()[:16]}…; choose another name")

    def models(self) -> list[ShelfModel]:
        """All models, by name."""
        found = [read_note(path.parent) for path in (self.root / "models").glob(f"*/{NOTE_FILE}")]
        return sorted(found, key=lambda model: (model.name, model.root))

    def find(self, words: str) -> ShelfModel:
        """The model called `NAME`, `NAME@ROOT` or `ROOT` (its first 8 digits or more).

        Raises:
            ModelNotFound: none, or several, are.
        """
        name, _, root = words.partition("@")
        if not root and _ROOT.fullmatch(name) and not any(model.name == name for model in self.models()):
            name, root = "", name
        found = [
            model for model in self.models() if model.name == (name or model.name) and model.root.hex().startswith(root)
        ]
        if len(found) != 1:
            known = ", ".join(f"{model.name}@{model.root.hex()[:8]}" for model in self.models()) or "none"
            raise ModelNotFound(
                f"{'several models' if found else 'no model'} called {words!r:.100} here; known: {known}"
            )
        return found[0]

    def remove(self, model: ShelfModel) -> int:
        """Forget a model and remove its pieces, but for those that another model here has too; returns the bytes freed.

        Raises:
            InvalidRequest: a program uses some of them.
        """
        others = [other.manifest() for other in self.models() if other.root != model.root]
        going = digests_of(model.manifest()).difference(*map(digests_of, others))
        with self.disk.locked():
            is_used = bool(going & pinned_in(self.root))
        if is_used:
            raise InvalidRequest(f"a node on this machine serves {model.name}; try: shoal stop")
        forget(self.disk, sorted(going))
        (model.directory / NOTE_FILE).unlink()  # from here on it is not on the shelf any more
        shutil.rmtree(model.directory)
        return self.store.remove(sorted(going))

    def _make(self, folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> None:
        """The folder, whole or not at all; without its note nobody takes it for a model."""
        new = Path(mkdtemp(prefix=".new.", dir=folder.parent))
        try:
            write_manifest(manifest, new / MANIFEST_FILE)
            for name, data in files.items():
                (new / name).write_bytes(data)
            new.rename(folder)
        except OSError:
            shutil.rmtree(new, ignore_errors=True)
            if not folder.is_dir():  # else another program was faster
                raise


def check_name(name: str) -> None:
    """Raises InvalidRequest if this is no name for a model."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(f"{name!r:.100} is no name for a model; write letters, digits, dots, _ and -")


def digests_of(manifest: Manifest) -> set[bytes]:
    """Of all its pieces."""
    experts = {digest for digests in manifest.experts.values() for digest in digests}
    return experts | {leaf.digest for leaf in manifest.trunk.values()}


def read_note(folder: Path) -> ShelfModel:
    """The model of a folder of the shelf.

    Raises:
        CheckpointError: its note is damaged.
    """
    value = parse_object((folder / NOTE_FILE).read_bytes(), NOTE_FILE)
    name, sources = value.get("name"), value.get("sources")
    is_folder_right = _ROOT.fullmatch(folder.name) is not None and len(folder.name) == 64
    if value.get("shoal_pieces") != 1 or not isinstance(name, str) or not isinstance(sources, list):
        raise CheckpointError(f"{folder.name}/{NOTE_FILE}", None, "not a note of version 1")
    if not is_folder_right or not all(isinstance(each, str) for each in sources):
        raise CheckpointError(f"{folder.name}/{NOTE_FILE}", None, "a note in a wrong folder, or of wrong words")
    return ShelfModel(name, bytes.fromhex(folder.name), folder, tuple(sources))


def _write_note(folder: Path, name: str, sources: Sequence[str]) -> None:
    """Private: a mirror's URL may have a password in it."""
    temporary = folder / f".{NOTE_FILE}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"shoal_pieces": 1, "name": name, "sources": list(sources)}, file)
    temporary.replace(folder / NOTE_FILE)
