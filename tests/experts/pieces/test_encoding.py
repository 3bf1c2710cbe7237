"""A piece's bytes: what the manifest's digest is of, and read back the same; anything else is refused."""

from pathlib import Path
from random import Random

import pytest
import torch

from shoal.experts.checkpoint import StoredTensor
from shoal.experts.digest import digest_bytes, digest_tensors
from shoal.experts.pieces.encoding import MAX_TENSORS_OF_A_PIECE, decode_piece, encode_piece
from shoal.experts.pieces.pieces import all_experts, expert_pieces, trunk_pieces
from shoal.experts.shard import read_shard
from shoal.experts.store import ModelStore
from shoal.protocol.errors import CheckpointError
from tests.checkpoints import SHAPES, write_checkpoint


def tensor(name: str = "a.weight", size: int = 5) -> StoredTensor:
    return StoredTensor(name, "here", "BF16", torch.arange(size * 2, dtype=torch.float32).bfloat16().view(size, 2))


def test_an_encoding_hashes_to_the_digest_of_the_manifest(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, SHAPES["ragged_fp8_mtp_sharded"], seed=3)
    with ModelStore.open(tmp_path, tmp_path / "cache") as store:
        for piece in expert_pieces(store.manifest, all_experts(store.manifest)):
            tensors = read_shard(store.checkpoint, store.spec, piece.layer, piece.expert).tensors
            assert digest_bytes(encode_piece(tensors)) == piece.digest
        for trunk in trunk_pieces(store.manifest):
            assert digest_bytes(encode_piece([store.checkpoint.read(trunk.name)])) == trunk.digest


def test_a_piece_reads_back_as_it_was_written() -> None:
    given = [tensor(), StoredTensor("b", "here", "F32", torch.tensor(3.0)), tensor("ü", 0)]
    read = decode_piece(encode_piece(given), "there")
    assert [(each.name, each.dtype, each.shape) for each in read] == [(e.name, e.dtype, e.shape) for e in given]
    assert all(torch.equal(a.data, b.data) for a, b in zip(read, given, strict=True))
    assert digest_tensors(read) == digest_tensors(given)


def test_every_truncation_is_refused() -> None:
    raw = encode_piece([tensor()])
    for length in range(len(raw)):
        with pytest.raises(CheckpointError):
            decode_piece(raw[:length], "there")


def test_random_bytes_are_refused_or_read_but_never_anything_else() -> None:
    chooser, raw = Random(1), encode_piece([tensor(), tensor("b")])
    for _ in range(2000):
        changed = bytearray(raw)
        changed[chooser.randrange(len(changed))] = chooser.randrange(256)
        try:
            decode_piece(changed, "there")
        except CheckpointError:
            continue
    with pytest.raises(CheckpointError):
        decode_piece(b"\xff" * 4000, "there")


def test_too_many_tensors_are_refused() -> None:
    with pytest.raises(CheckpointError, match="more than"):
        decode_piece(encode_piece([tensor()] * (MAX_TENSORS_OF_A_PIECE + 1)), "there")
