"""The small files of a model on this machine, by hash, and their list: what a token vouches for (PROTOCOL.md §7.4).

Config, manifest, and what a client reads beside the weights, of a checkpoint directory or a folder of the shelf. Knows
no peers; the list's bytes are `protocol/model_files.py`'s.
"""

from pathlib import Path

from shoal.experts.digest import digest_bytes
from shoal.experts.family import CONFIG_FILE
from shoal.experts.manifest import MANIFEST_FILE, Manifest, encode_manifest
from shoal.experts.pieces.layout import LAYOUT_FILE
from shoal.experts.pieces.shelf import SMALL_FILES
from shoal.experts.store import ModelStore
from shoal.protocol.model_files import MAX_FILE_BYTES, ListedFile, encode_files, list_digest

LISTED = (CONFIG_FILE, MANIFEST_FILE, LAYOUT_FILE, *SMALL_FILES)
"""Names that a list may have for us; others are passed over, whatever they are."""


class SmallFiles:
    """One model's. Blocking; any thread."""

    def __init__(self, store: ModelStore) -> None:
        """Reads and hashes them; what can not be read is not listed."""
        self._directory = store.directory
        self._manifest = store.manifest
        files = [_listed(name, data) for name in LISTED if (data := self._content(name)) is not None]
        self._names = {file.digest: file.name for file in files}
        self.list = encode_files(files)
        self.list_digest = list_digest(self.list)

    def knows(self, digest: bytes) -> bool:
        """Whether it is the list's, or that of a file that is on it."""
        return digest == self.list_digest or digest in self._names

    def read(self, digest: bytes) -> bytes | None:
        """The bytes of that hash; None: there are none, or not any more."""
        if digest == self.list_digest:
            return self.list
        name = self._names.get(digest)
        data = None if name is None else self._content(name)
        return data if data is not None and digest_bytes(data) == digest else None

    def _content(self, name: str) -> bytes | None:
        return _manifest_bytes(self._manifest) if name == MANIFEST_FILE else _read(self._directory / name)


def _listed(name: str, data: bytes) -> ListedFile:
    return ListedFile(name, len(data), digest_bytes(data))


def _manifest_bytes(manifest: Manifest) -> bytes:
    """As every program writes it, however the file beside the weights was written."""
    return encode_manifest(manifest).encode("ascii")


def _read(path: Path) -> bytes | None:
    try:
        if not path.is_file() or not 0 < path.stat().st_size <= MAX_FILE_BYTES:
            return None  # a piece has at least a byte
        return path.read_bytes()
    except OSError:
        return None
