"""What this node can give of its model, by hash: experts, the trunk, small files; verified when they are opened.

Over a checkpoint directory or over pieces (`ModelStore`). Blocking; any thread. Knows no peers.
"""

import json
from typing import Protocol

from shoal.experts.manifest import Manifest, encode_manifest
from shoal.experts.pieces.model import PieceModel
from shoal.experts.pieces.ranged import RangedPiece
from shoal.experts.small_files import SmallFiles
from shoal.experts.store import ModelStore
from shoal.experts.weight_formats import stored_bytes
from shoal.protocol.errors import CheckpointError, ModelNotFound
from shoal.protocol.ids import ExpertId, LayerId

HEADS_BYTES = 64 * 1024
"""More than names, shapes and biases add to an expert's weights in a piece."""


class PieceLibrary(Protocol):
    """Pieces by hash; what `Library` is, and a simulation's stand-in for it."""

    @property
    def root(self) -> bytes:
        """The model."""

    @property
    def piece_bytes(self) -> int:
        """What an expert's piece has at most."""

    def knows(self, digest: bytes) -> bool:
        """Whether there is such a piece in the model; whether it is here, `read` says."""

    def read(self, digest: bytes) -> bytes | bytearray | RangedPiece | None:
        """A piece's bytes, hashed after they were read, or, of the trunk, its ranges, hashed now; None: it is not here,
        or damaged.

        Raises:
            OSError: the disk.
        """


class Library:
    """The pieces of one model on this machine. Implements `PieceLibrary`."""

    def __init__(self, store: ModelStore) -> None:
        """`store`: open as long as this is used."""
        self._store = store
        self._places = places_of(store.manifest)
        self._tensors = {leaf.digest: name for name, leaf in store.manifest.trunk.items()}
        self._files = SmallFiles(store)

    @property
    def root(self) -> bytes:
        return self._store.manifest.root

    @property
    def piece_bytes(self) -> int:
        return self.expert_bytes + HEADS_BYTES

    @property
    def expert_bytes(self) -> int:
        """What an expert's piece has without names and shapes."""
        return stored_bytes(self._store.spec.expert, self._store.weight_format)

    @property
    def files_digest(self) -> bytes:
        """Of the list of this copy's small files, for tokens."""
        return self._files.list_digest

    def has_trunk(self) -> bool:
        """Whether the whole trunk is on this machine."""
        return not isinstance(self._store, PieceModel) or self._store.has_trunk()

    def knows(self, digest: bytes) -> bool:
        is_weight = digest in self._places or digest in self._tensors
        return is_weight or self._files.knows(digest) or digest in (self.root, self._store.manifest.config_digest)

    def read(self, digest: bytes) -> bytes | bytearray | RangedPiece | None:
        if self._files.knows(digest):
            return self._files.read(digest)
        if digest == self.root:
            return encode_manifest(self._store.manifest).encode("ascii")
        if digest == self._store.manifest.config_digest:
            return json.dumps(self._store.config).encode()
        place, tensor = self._places.get(digest), self._tensors.get(digest)
        try:
            if tensor is not None:
                return self._store.trunk_piece(tensor)
            return None if place is None else self._store.piece(*place)
        except (CheckpointError, ModelNotFound):
            return None


def places_of(manifest: Manifest) -> dict[bytes, tuple[LayerId, ExpertId]]:
    """Which expert a digest is of: names are part of what is hashed, so no two experts have the same."""
    return {
        digest: (layer, ExpertId(expert))
        for layer, digests in manifest.experts.items()
        for expert, digest in enumerate(digests)
    }
