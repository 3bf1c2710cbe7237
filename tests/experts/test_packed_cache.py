"""A packed expert from a file computes the same bits as one just packed; a damaged file gives none and is removed."""

import gc
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shoal.experts.backend import ExpertWeights, PackedExpert
from shoal.experts.cpu_backend import CpuBackend, CpuExpert
from shoal.experts.family import ExpertSpec
from shoal.experts.packed_cache import ARRIVING, PACKED, PackedCache, PackedKey
from shoal.experts.pieces.disk import FolderDisk
from shoal.experts.weight_formats import quantize_expert
from shoal.kernels import cpu
from shoal.kernels.cpu import CpuKernels
from shoal.protocol.errors import CheckpointError, DiskFull
from shoal.protocol.messages import Rounding, WeightFormat

pytestmark = pytest.mark.skipif(not cpu.is_available(), reason="needs the C++ kernels")

SPEC = ExpertSpec(hidden=200, inter=136)
PIECE = bytes(range(32))


def weights(weight_format: WeightFormat, seed: int = 0) -> ExpertWeights:
    generator = torch.Generator().manual_seed(seed)
    wide, tall = (SPEC.inter, SPEC.hidden), (SPEC.hidden, SPEC.inter)
    shapes = {"gate": wide, "up": wide, "down": tall}
    drawn = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
    return quantize_expert(drawn, weight_format, "a test")


def packed(weight_format: WeightFormat = WeightFormat.FP8_BLOCK, seed: int = 0) -> CpuExpert:
    return CpuBackend(CpuKernels(1)).pack(SPEC, weights(weight_format, seed))


def key(weight_format: WeightFormat = WeightFormat.FP8_BLOCK, piece: bytes = PIECE) -> PackedKey:
    return PackedKey(piece, SPEC, weight_format)


def answer(expert: PackedExpert, rounding: Rounding = Rounding.BF16) -> torch.Tensor:
    x = torch.randn((3, SPEC.hidden), generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    return CpuBackend(CpuKernels(1)).run([expert], x, torch.arange(3), [0, 3], torch.ones(3), rounding)


@pytest.fixture
def cache(tmp_path: Path) -> PackedCache:
    return PackedCache(FolderDisk(tmp_path), lambda: 10**9)


def file_of(tmp_path: Path, one: PackedKey | None = None) -> Path:
    return tmp_path / PACKED / (one or key()).name


@pytest.mark.parametrize("weight_format", list(WeightFormat))
def test_a_mapped_expert_computes_the_same_bits_as_the_one_that_was_kept(
    cache: PackedCache, weight_format: WeightFormat
) -> None:
    expert = packed(weight_format)
    assert cache.find(key(weight_format)) is None
    assert cache.keep(key(weight_format), expert)
    mapped = cache.find(key(weight_format))
    assert mapped is not None
    assert mapped.resident_bytes == expert.resident_bytes
    for rounding in Rounding:
        assert torch.equal(answer(mapped, rounding), answer(expert, rounding))


def test_a_mapped_expert_outlives_its_file_its_cache_and_what_else_knew_it(tmp_path: Path) -> None:
    expert = packed()
    cache = PackedCache(FolderDisk(tmp_path), lambda: 10**9)
    cache.keep(key(), expert)
    mapped = cache.find(key())
    file_of(tmp_path).unlink()
    del cache
    gc.collect()
    assert mapped is not None
    assert torch.equal(answer(mapped), answer(expert))


def test_an_expert_is_found_by_piece_and_format_and_packing_and_by_nothing_less(
    cache: PackedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.keep(key(), packed())
    assert cache.find(key(piece=bytes(32))) is None
    assert cache.find(key(WeightFormat.INT8_G128)) is None
    monkeypatch.setattr("shoal.experts.packed_cache.packing_version", lambda: 2)
    assert cache.find(key()) is None


def test_an_experts_file_under_anothers_name_is_refused(cache: PackedCache, tmp_path: Path) -> None:
    cache.keep(key(), packed())
    other = key(piece=bytes(32))
    os.link(file_of(tmp_path), file_of(tmp_path, other))
    with pytest.raises(CheckpointError, match="something else"):
        cache.find(other)
    assert cache.find(key()) is not None


def test_every_kind_of_damage_is_found_removed_and_mended_by_keeping_again(cache: PackedCache, tmp_path: Path) -> None:
    expert, path = packed(), file_of(tmp_path)
    cache.keep(key(), expert)
    whole = path.read_bytes()
    places = [0, 31, 32, 40, 90, 4096, len(whole) // 2, len(whole) - 1]
    flipped = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in places]
    cut = [whole[:size] for size in (1, 31, 4096, len(whole) - 1)]
    for damaged in (*flipped, *cut, whole + b"\0", bytes(len(whole))):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            cache.find(key())
        assert not path.exists()
        assert cache.keep(key(), expert)
        assert path.read_bytes() == whole
    path.write_bytes(b"")
    assert cache.find(key()) is None
    assert not path.exists()


def test_what_was_half_written_is_gone_with_the_next_start_and_what_was_whole_stays(
    cache: PackedCache, tmp_path: Path
) -> None:
    cache.keep(key(), packed())
    (tmp_path / ARRIVING / key(piece=bytes(32)).name).write_bytes(b"half")
    again = PackedCache(FolderDisk(tmp_path), lambda: 10**9)
    assert not list((tmp_path / ARRIVING).iterdir())
    assert again.find(key()) is not None


def test_an_expert_is_written_once_whoever_keeps_it(cache: PackedCache, tmp_path: Path) -> None:
    caches = [cache, *(PackedCache(FolderDisk(tmp_path), lambda: 10**9) for _ in range(3))]
    written: list[bool] = []
    threads = [threading.Thread(target=lambda each=each: written.append(each.keep(key(), packed()))) for each in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(written) == [False, False, False, True]
    assert cache.find(key()) is not None


def test_the_longest_unused_goes_first_and_what_this_program_uses_stays(tmp_path: Path) -> None:
    pieces = [bytes([number]) * 32 for number in range(4)]
    first = PackedCache(FolderDisk(tmp_path), lambda: 10**9)
    for number, piece in enumerate(pieces[:3]):
        first.keep(key(piece=piece), packed())
        os.utime(file_of(tmp_path, key(piece=piece)), (number, number))
    one = first.size_bytes // 3
    ours = PackedCache(FolderDisk(tmp_path), lambda: 3 * one - ours.size_bytes)
    assert ours.find(key(piece=pieces[0])) is not None
    assert ours.keep(key(piece=pieces[3]), packed())
    there = [piece for piece in pieces if file_of(tmp_path, key(piece=piece)).exists()]
    assert there == [pieces[0], pieces[2], pieces[3]]


def test_packings_of_other_versions_go_before_anything_else(tmp_path: Path) -> None:
    cache = PackedCache(FolderDisk(tmp_path), lambda: 10**9)
    cache.keep(key(), packed())
    os.utime(file_of(tmp_path), (0, 0))
    old = tmp_path / PACKED / f"{bytes(32).hex()}.fp8_block.0"
    old.write_bytes(bytes(100))
    assert PackedCache(FolderDisk(tmp_path), lambda: -1).trim() == 100
    assert not old.exists()
    assert file_of(tmp_path).exists()


def test_without_room_nothing_is_written_and_nothing_of_ours_goes(tmp_path: Path) -> None:
    room = [10**9]
    cache = PackedCache(FolderDisk(tmp_path), lambda: room[0])
    cache.keep(key(), packed())
    room[0] = 0
    with pytest.raises(DiskFull):
        cache.keep(key(piece=bytes(32)), packed())
    assert [path.name for path in (tmp_path / PACKED).iterdir()] == [key().name]
    assert not list((tmp_path / ARRIVING).iterdir())


def test_what_is_forgotten_is_gone_in_every_format_and_nothing_else(cache: PackedCache, tmp_path: Path) -> None:
    other = key(piece=bytes(32))
    for each in (key(), key(WeightFormat.INT8_G128), other):
        cache.keep(each, packed(each.format))
    before = cache.size_bytes
    freed = cache.forget([PIECE, b"x" * 32])
    assert [path.name for path in (tmp_path / PACKED).iterdir()] == [other.name]
    assert freed == before - cache.size_bytes > 0
    assert cache.forget([PIECE]) == 0


def test_experts_with_biases_are_not_kept(cache: PackedCache) -> None:
    with_biases = replace(key(), spec=ExpertSpec(200, 136, has_biases=True))
    assert not cache.keep(with_biases, packed())
    assert cache.find(with_biases) is None
