"""The store on a real folder: what it keeps, refuses, evicts and shares."""

import errno
import os
import threading
from pathlib import Path

import pytest
from blake3 import blake3

from shoal.experts.pieces.disk import FolderDisk
from shoal.experts.pieces.pins import Pins, pinned_in
from shoal.experts.pieces.store import PieceStore, StoredPiece, StorePolicy
from shoal.protocol.errors import CheckpointError, DiskFull

BLOBS = [bytes([i]) * 1000 for i in range(8)]
DIGESTS = [blake3(blob).digest() for blob in BLOBS]


def store_at(root: Path, policy: StorePolicy | None = None) -> PieceStore:
    return PieceStore(FolderDisk(root), policy or StorePolicy())


def test_a_piece_is_a_file_named_by_its_hash(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    store.put(DIGESTS[1], BLOBS[1])
    assert (tmp_path / "pieces" / DIGESTS[1].hex()).read_bytes() == BLOBS[1]
    assert store.read(DIGESTS[1]) == BLOBS[1]
    assert store.has(DIGESTS[1])
    assert store.size_bytes == 1000
    assert store.read(DIGESTS[2]) is None
    assert not store.has(DIGESTS[2])


def test_other_bytes_than_the_digest_s_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    with pytest.raises(CheckpointError, match="not the bytes of this piece"):
        store.put(DIGESTS[0], BLOBS[1])
    assert store.pieces() == []
    assert list((tmp_path / "arriving").iterdir()) == []


@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "empty"])
def test_a_damaged_piece_is_never_given_out_and_can_come_again(damage: str, tmp_path: Path) -> None:
    store = store_at(tmp_path)
    store.put(DIGESTS[0], BLOBS[0])
    path = tmp_path / "pieces" / DIGESTS[0].hex()
    raw = {"flip": b"\x01" + BLOBS[0][1:], "cut": BLOBS[0][:-1], "grow": BLOBS[0] + b"\0", "empty": b""}[damage]
    path.write_bytes(raw)
    assert store.read(DIGESTS[0]) is None
    assert not path.exists()
    path.write_bytes(raw)
    store.put(DIGESTS[0], BLOBS[0])
    assert store.read(DIGESTS[0]) == BLOBS[0]


def test_verifying_finds_what_is_damaged_and_removes_it(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    for digest, blob in zip(DIGESTS, BLOBS, strict=True):
        store.put(digest, blob)
    (tmp_path / "pieces" / DIGESTS[3].hex()).write_bytes(b"?")
    assert store.verify(DIGESTS) == [DIGESTS[3]]
    assert store.verify(DIGESTS) == []
    assert len(store.pieces()) == 7


def test_over_the_cap_the_first_in_order_goes(tmp_path: Path) -> None:
    replicas = dict(zip(DIGESTS, (1, 9, 2, 5, 1, 1, 1, 1), strict=True))

    def plentiful_first(piece: StoredPiece) -> float:
        return -replicas[piece.digest]

    store = store_at(tmp_path, StorePolicy(cap_bytes=4000, order=plentiful_first))
    for digest, blob in zip(DIGESTS[:6], BLOBS, strict=False):
        store.put(digest, blob)
    assert {piece.digest for piece in store.pieces()} == {DIGESTS[i] for i in (0, 2, 4, 5)}


def test_what_is_read_stays_longer_than_what_is_not(tmp_path: Path) -> None:
    store = store_at(tmp_path, StorePolicy(cap_bytes=3000))
    for i in range(3):
        store.put(DIGESTS[i], BLOBS[i])
        os.utime(tmp_path / "pieces" / DIGESTS[i].hex(), ns=(i, i))
    store.read(DIGESTS[0])
    store.put(DIGESTS[3], BLOBS[3])
    assert {piece.digest for piece in store.pieces()} == {DIGESTS[i] for i in (0, 2, 3)}


def test_what_a_living_program_pins_is_not_evicted(tmp_path: Path) -> None:
    disk = FolderDisk(tmp_path)
    store = PieceStore(disk, StorePolicy(cap_bytes=2000, pinned=lambda: pinned_in(tmp_path)))
    store.put(DIGESTS[0], BLOBS[0])
    store.put(DIGESTS[1], BLOBS[1])
    with Pins(disk) as pins:
        pins.hold("node", DIGESTS[:2])
        with pytest.raises(DiskFull, match="beside what must stay"):
            store.put(DIGESTS[2], BLOBS[2])
        pins.hold("node", DIGESTS[1:2])
        store.put(DIGESTS[2], BLOBS[2])
    assert {piece.digest for piece in store.pieces()} == set(DIGESTS[1:3])
    assert pinned_in(tmp_path) == frozenset()


def test_the_pins_of_a_program_that_died_hold_nothing(tmp_path: Path) -> None:
    disk = FolderDisk(tmp_path)
    Pins(disk)
    (tmp_path / "pins" / "node.1.0").write_bytes(DIGESTS[0])
    assert pinned_in(tmp_path) == frozenset()
    assert list((tmp_path / "pins").iterdir()) == []


def test_a_piece_larger_than_the_cap_is_refused_and_evicts_nothing(tmp_path: Path) -> None:
    store = store_at(tmp_path, StorePolicy(cap_bytes=1500))
    store.put(DIGESTS[0], BLOBS[0])
    large = bytes(1501)
    with pytest.raises(DiskFull):
        store.put(blake3(large).digest(), large)
    assert store.has(DIGESTS[0])


class FullDisk(FolderDisk):
    def write(self, folder: str, name: str, data: bytes | bytearray) -> None:
        super().write(folder, name, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_a_typed_error_and_leaves_no_half_piece(tmp_path: Path) -> None:
    store = PieceStore(FullDisk(tmp_path))
    with pytest.raises(DiskFull, match="No space left"):
        store.put(DIGESTS[0], BLOBS[0])
    assert store.pieces() == []
    assert list((tmp_path / "arriving").iterdir()) == []


def test_removing_says_how_much_came_free(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    store.put(DIGESTS[0], BLOBS[0])
    store.put(DIGESTS[1], BLOBS[1])
    assert store.remove([DIGESTS[0], DIGESTS[5]]) == 1000
    assert [piece.digest for piece in store.pieces()] == [DIGESTS[1]]


def test_stores_of_one_folder_share_it_from_many_threads(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work(start: int) -> None:
        try:
            store = store_at(tmp_path, StorePolicy(cap_bytes=5000))
            for i in range(40):
                index = (start * 3 + i) % 8
                store.put(DIGESTS[index], BLOBS[index])
                assert store.read(DIGESTS[index]) in (None, BLOBS[index])
        except BaseException as error:  # told to the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    store = store_at(tmp_path)
    assert store.size_bytes <= 5000
    assert store.verify(DIGESTS) == []
