"""What this node can give of its model, by hash: experts, the manifest, the config; verified each time they are read.

Over a checkpoint directory or over pieces (`ModelStore`). Blocking; any thread. Knows no peers.
"""

import json
from typing import Protocol

from shoal.experts.manifest import Manifest, encode_manifest
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

    def read(self, digest: bytes) -> bytes | bytearray | None:
        """A piece's bytes, hashed after they were read; None: it is not here, or damaged.

        Raises:
            OSError: the disk.
        """


class Library:
    """The pieces of one model on this machine. Implements `PieceLibrary`."""

    def __init__(self, store: ModelStore) -> None:
        """`store`: open as long as this is used."""
        self._store = store
        self._places = places_of(store.manifest)

    @property
    def root(self) -> bytes:
        return self._store.manifest.root

    @property
    def piece_bytes(self) -> int:
        return stored_bytes(self._store.spec.expert, self._store.weight_format) + HEADS_BYTES

    def knows(self, digest: bytes) -> bool:
        return digest in self._places or digest in (self.root, self._store.manifest.config_digest)

    def read(self, digest: bytes) -> bytes | bytearray | None:
        if digest == self.root:
            return encode_manifest(self._store.manifest).encode("ascii")
        if digest == self._store.manifest.config_digest:
            return json.dumps(self._store.config).encode()
        place = self._places.get(digest)
        try:
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
