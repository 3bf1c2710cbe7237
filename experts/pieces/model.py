"""A model opened from the store: what node and client see of it is `ModelStore`; every weight is a piece.

Experts that are not in the store are an error that says how to get them. Knows the shelf and the store; knows no
sources: who fills the store is the node's or the verb's business.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

import torch

from shoal.experts.backend import ExpertWeights
from shoal.experts.checkpoint import TORCH_DTYPES, Checkpoint, StoredTensor
from shoal.experts.digest import digest_config, digest_tensors
from shoal.experts.family import CONFIG_FILE, ModelSpec, model_spec, read_config
from shoal.experts.manifest import Manifest, TrunkLeaf
from shoal.experts.pieces.encoding import decode_piece
from shoal.experts.pieces.pieces import (
    ExpertPiece,
    Piece,
    TrunkPiece,
    expert_pieces,
    trunk_piece,
    trunk_pieces,
)
from shoal.experts.pieces.ranged import RangedPiece
from shoal.experts.pieces.ranges import parts_of
from shoal.experts.pieces.shelf import Shelf, ShelfModel, read_note
from shoal.experts.safetensors_header import ITEM_BYTES
from shoal.experts.shard import ExpertShard
from shoal.experts.store import ModelStore
from shoal.protocol.errors import CheckpointError, InvalidRequest, ModelNotFound
from shoal.protocol.ids import ExpertId, LayerId


class PieceModel(ModelStore):
    """`ModelStore` over pieces. Blocking; any thread."""

    def __init__(self, shelf: Shelf, model: ShelfModel, config: Mapping[str, object], manifest: Manifest) -> None:
        """Use `open`."""
        self.shelf = shelf
        self.model = model
        self._config = config
        self._manifest = manifest
        self._spec = spec_of(config, manifest)
        self._bytes_read = 0

    @classmethod
    def open_folder(cls, directory: Path) -> "PieceModel":
        """Open a folder of a shelf.

        Raises:
            CheckpointError: note, manifest or config are damaged, or do not belong together. InvalidRequest: a model
            that cannot run.
        """
        model = read_note(directory)
        config = read_config(directory)
        manifest = model.manifest()
        check_config(config, manifest)
        return cls(Shelf(directory.parent.parent), model, config, manifest)

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def directory(self) -> Path:
        return self.model.directory

    @property
    def config(self) -> Mapping[str, object]:
        return self._config

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def checkpoint(self) -> Checkpoint:
        """Raises InvalidRequest: there are no files."""
        raise InvalidRequest(f"{self.name} is in pieces; for this, give its checkpoint directory")

    @property
    def bytes_read(self) -> int:
        return self._bytes_read

    def missing(self, wanted: Iterable[tuple[LayerId, ExpertId]]) -> list[ExpertPiece]:
        """The pieces of these experts that are not in the store."""
        there = {piece.digest for piece in self.shelf.store.pieces()}
        return [piece for piece in expert_pieces(self.manifest, wanted) if piece.digest not in there]

    def expert(self, layer: LayerId, expert: ExpertId) -> ExpertWeights:
        piece = ExpertPiece(self.manifest.expert_digest(layer, expert), layer, expert)
        tensors = self._read(piece)
        names = [part.name for part in parts_of(piece, self.weight_format, self.spec)]
        if [tensor.name for tensor in tensors] != names:
            raise CheckpointError(piece.name, None, "its tensors are not an expert's of this model")
        return ExpertShard(self.weight_format, tensors, self.spec.names.layout).weights()

    def piece(self, layer: LayerId, expert: ExpertId) -> bytes | bytearray | None:
        return self.shelf.store.read(self.manifest.expert_digest(layer, expert))

    def has_experts(self, layer: LayerId) -> bool:
        """Whether the pieces of all routed experts of a layer are in the store."""
        if layer not in self.spec.moe_layers:
            return False
        return not self.missing((layer, ExpertId(expert)) for expert in range(self.spec.router.num_experts))

    def has(self, name: str) -> bool:
        """Whether the trunk has a tensor of this name."""
        return name in self.manifest.trunk

    def file_of(self, name: str) -> str:
        return f"{self.name}: {name}"

    def trunk_tensor(self, name: str) -> torch.Tensor:
        leaf = self.manifest.trunk.get(name)
        if leaf is None:
            raise CheckpointError(self.name, name, "not in the manifest")
        return self._read_tensor(trunk_piece(name, leaf), leaf).data

    def trunk_piece(self, name: str) -> RangedPiece | None:
        leaf = self.manifest.trunk.get(name)
        return None if leaf is None else self.shelf.store.ranged(leaf.digest)

    def has_trunk(self, layers: range | None = None) -> bool:
        """Whether the pieces of the trunk, or of these layers of it, are in the store."""
        there = {piece.digest for piece in self.shelf.store.pieces()}
        return all(piece.digest in there for piece in trunk_pieces(self.manifest, layers))

    def close(self) -> None:
        """Nothing is open between calls."""

    def _read(self, piece: ExpertPiece) -> tuple[StoredTensor, ...]:
        data = self.shelf.store.read(piece.digest)
        if data is None:
            raise self._missing(piece)
        self._bytes_read += len(data)
        return decode_piece(data, self.file_of(piece.name))

    def _read_tensor(self, piece: TrunkPiece, leaf: TrunkLeaf) -> StoredTensor:
        """A tensor of the trunk: read into its own memory and no other, then hashed."""
        size_bytes = prod(leaf.shape) * ITEM_BYTES[leaf.dtype]
        raw = self.shelf.store.read_range(piece.digest, piece.size_bytes - size_bytes, size_bytes)
        if raw is None:
            raise self._missing(piece)
        data = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
        typed = data.view(TORCH_DTYPES[leaf.dtype]).view(leaf.shape)
        tensor = StoredTensor(piece.name, self.file_of(piece.name), leaf.dtype, typed)
        if digest_tensors([tensor]) != leaf.digest:
            self.shelf.store.verify([piece.digest])  # removes what is damaged
            raise self._missing(piece)
        self._bytes_read += size_bytes
        return tensor

    def _missing(self, piece: Piece) -> ModelNotFound:
        wanted = f"--experts {piece.layer}:{piece.expert}" if isinstance(piece, ExpertPiece) else "--trunk"
        return ModelNotFound(f"{piece.name} of {self.name} is not here; try: shoal models pull {self.name} {wanted}")


def spec_of(config: Mapping[str, object], manifest: Manifest) -> ModelSpec:
    """The model's spec with the layers that the manifest has.

    Raises:
        CheckpointError: a layer is missing that is no MTP layer, or has another number of experts.
    """
    spec = model_spec(config)
    layers = tuple(layer for layer in spec.moe_layers if layer in manifest.experts or layer < spec.num_layers)
    if {layer: len(digests) for layer, digests in manifest.experts.items()} != dict.fromkeys(
        layers, spec.router.num_experts
    ):
        raise CheckpointError(CONFIG_FILE, None, "other layers or experts than the manifest has")
    return replace(spec, moe_layers=layers, num_mtp_layers=sum(layer >= spec.num_layers for layer in layers))


def check_config(config: Mapping[str, object], manifest: Manifest) -> None:
    """Raises CheckpointError unless this is the config that the manifest was made of."""
    if digest_config(config) != manifest.config_digest:
        raise CheckpointError(CONFIG_FILE, None, "not the config that the manifest was made of")
