"""A model directory as node and client see it: spec, identity, and weights that are verified before anyone gets them.

A node takes experts from here, a trunk host everything else. Composes checkpoint, shard and manifest; knows no kernels
and no peers.
"""

import asyncio
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Self

import torch

from shoal.experts.backend import ExpertWeights
from shoal.experts.checkpoint import Checkpoint
from shoal.experts.digest import head_of
from shoal.experts.family import SCALE_SUFFIX, ModelSpec
from shoal.experts.manifest import Manifest, verify_expert, verify_trunk_tensor
from shoal.experts.manifest_maker import ModelFiles, Progress, manifest_of
from shoal.experts.pieces.encoding import encode_piece
from shoal.experts.pieces.ranged import RangedPiece
from shoal.experts.pieces.shelf import NOTE_FILE
from shoal.experts.shard import read_shard
from shoal.experts.stored_weight import FORMAT_OF_DTYPE, StoredWeight
from shoal.protocol.errors import Cancelled, CheckpointError
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import WeightFormat


class ModelStore:
    """The verified weights of one model directory. Blocking; safe to use from several threads."""

    def __init__(self, files: ModelFiles, manifest: Manifest) -> None:
        """Use `open`."""
        self._files = files
        self._manifest = manifest

    @classmethod
    def open(cls, directory: Path, cache_dir: Path, progress: Progress | None = None) -> "ModelStore":
        """Open a model directory and find, or make, its manifest (kept in `cache_dir` unless shipped with the model).

        A folder of a shelf (`pieces/shelf.py`) is opened as one, from its pieces.

        With a shipped manifest only config, index and manifest are read; else all headers, or, the first time,
        everything (`progress` is told then, and may raise to give up).

        Raises:
            ModelNotFound: no such directory, or no checkpoint in it. InvalidRequest: a model that cannot run, or
            `cache_dir` cannot be written. CheckpointError: damaged files, or a manifest of another model.
        """
        if (directory / NOTE_FILE).is_file():
            from shoal.experts.pieces.model import PieceModel  # which is a ModelStore itself

            return PieceModel.open_folder(directory)
        files = ModelFiles.open(directory)
        try:
            return cls(files, manifest_of(files, cache_dir, progress))
        except BaseException:
            files.checkpoint.close()
            raise

    @property
    def name(self) -> str:
        """What people call the model here."""
        return self._files.directory.name

    @property
    def directory(self) -> Path:
        """Where its small files are."""
        return self._files.directory

    @property
    def config(self) -> Mapping[str, object]:
        """`config.json`."""
        return self._files.config

    @property
    def spec(self) -> ModelSpec:
        """Routers and experts; MTP layers are in it if their tensors are in the checkpoint."""
        return self._files.spec

    @property
    def manifest(self) -> Manifest:
        """The model's hashes; `manifest.root` is its identity on the wire."""
        return self._manifest

    @property
    def checkpoint(self) -> Checkpoint:
        """The files; what is read from here directly is not verified."""
        return self._files.checkpoint

    @property
    def weight_format(self) -> WeightFormat:
        """How the routed experts are stored."""
        return self._manifest.weight_format

    @property
    def bytes_read(self) -> int:
        """Bytes read from safetensors files so far, headers included."""
        return self.checkpoint.bytes_read

    def expert(self, layer: LayerId, expert: ExpertId) -> ExpertWeights:
        """One expert as stored, verified against the manifest.

        Raises:
            InvalidRequest: no such expert. CheckpointError: its bytes, names or shapes are not the manifest's.
        """
        shard = read_shard(self.checkpoint, self.spec, layer, expert)
        verify_expert(self._manifest, layer, expert, shard.tensors)
        if shard.format is not self.weight_format:
            stated = self.weight_format.name
            raise CheckpointError(shard.tensors[0].file, shard.name, f"{shard.format.name}, the manifest has {stated}")
        return shard.weights()

    def piece(self, layer: LayerId, expert: ExpertId) -> bytes | bytearray | None:
        """The bytes of an expert as its digest is of them (`pieces/encoding.py`), verified; None: they are not here.

        Raises:
            As `expert`.
        """
        shard = read_shard(self.checkpoint, self.spec, layer, expert)
        verify_expert(self._manifest, layer, expert, shard.tensors)
        return encode_piece(shard.tensors)

    def trunk_piece(self, name: str) -> RangedPiece | None:
        """A tensor outside the routed experts as its digest is of it, to be read by ranges, hashed now, step by step;
        None: it is not here.

        Raises:
            CheckpointError: there is no such tensor, or it is not the manifest's.
        """
        entry, leaf = self.checkpoint.entry(name), self._manifest.trunk[name]
        head = head_of(name, entry.dtype, entry.shape, entry.size_bytes)
        piece = RangedPiece(head, entry.size_bytes, partial(self.checkpoint.read_range, name))
        if piece.digest() != leaf.digest:
            raise CheckpointError(self.file_of(name), name, "not the bytes of the manifest")
        return piece

    def has_experts(self, layer: LayerId) -> bool:
        """Whether every routed expert of a layer can be read on this machine: a checkpoint has all of its layers."""
        return layer in self.spec.moe_layers

    def file_of(self, name: str) -> str:
        """What errors call the place of a tensor. Raises CheckpointError if there is none."""
        return self.checkpoint.file_of(name)

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a tensor of this name."""
        return self.checkpoint.has(name)

    def trunk_tensor(self, name: str) -> torch.Tensor:
        """A tensor outside the routed experts as stored (fp8 as fp8), verified against the manifest.

        Raises:
            CheckpointError: there is none, or it is not the manifest's.
        """
        tensor = self.checkpoint.read(name)
        verify_trunk_tensor(self._manifest, tensor)
        return tensor.data

    def trunk_weight(self, name: str) -> StoredWeight:
        """A weight outside the routed experts as stored, its block scales with it; verified. fp16 comes as fp32.

        Raises:
            CheckpointError: as `trunk_tensor`, or fp8 without block scales that fit it, or a dtype that is no weight's.
        """
        data, file = self.trunk_tensor(name), self.file_of(name)
        if data.dtype is torch.float16:
            data = data.float()
        if data.dtype not in FORMAT_OF_DTYPE:
            raise CheckpointError(file, name, f"weights of {data.dtype}")
        weight_format = FORMAT_OF_DTYPE[data.dtype]
        has_scales = self.has(name + SCALE_SUFFIX)
        if has_scales is not (weight_format is WeightFormat.FP8_BLOCK):
            raise CheckpointError(file, name, f"{data.dtype} {'with' if has_scales else 'without'} block scales")
        weight = StoredWeight(
            name, file, weight_format, data, self.trunk_tensor(name + SCALE_SUFFIX) if has_scales else None
        )
        weight.check_scale()
        return weight

    def close(self) -> None:
        """Close the files."""
        self.checkpoint.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def open_store(directory: Path, cache_dir: Path, progress: Progress | None = None) -> ModelStore:
    """`ModelStore.open` on a thread; `progress` is called there. Raises what it raises.

    *Cancellation:* the thread gives up at the next tensor, so that Ctrl-C does not wait for a terabyte to be hashed.
    """
    is_cancelled = Event()

    def report(done: int, total: int) -> None:
        if is_cancelled.is_set():
            raise Cancelled("nobody waits for this model any more")
        if progress is not None:
            progress(done, total)

    try:
        return await asyncio.to_thread(ModelStore.open, directory, cache_dir, report)
    except asyncio.CancelledError:
        is_cancelled.set()
        raise
