"""A piece that comes in parts onto the disk goes on where it was, and is not given out before it is whole."""

import os
import threading
from pathlib import Path

import pytest

from shoal.experts.digest import digest_bytes
from shoal.experts.pieces.arriving import NOTE_BYTES, PARTIAL, Arrival, forget
from shoal.experts.pieces.disk import FolderDisk
from shoal.experts.pieces.store import PieceStore, StorePolicy
from shoal.protocol.errors import CheckpointError, DiskFull

DATA = bytes(range(256)) * 40
DIGEST = digest_bytes(DATA)


@pytest.fixture
def disk(tmp_path: Path) -> FolderDisk:
    return FolderDisk(tmp_path / "store")


def arrived(disk: FolderDisk, data: bytes = DATA) -> Arrival:
    """All of it, in two parts, the later first."""
    arrival = Arrival(disk, DIGEST)
    arrival.begin(len(data))
    arrival.write(1000, data[1000:])
    arrival.write(0, data[:1000])
    return arrival


def left(disk: FolderDisk) -> list[str]:
    return sorted(path.name for path in (disk.root / PARTIAL).iterdir())


def test_a_piece_in_parts_is_adopted_whole_and_leaves_nothing_behind(disk: FolderDisk) -> None:
    store, arrival = PieceStore(disk), arrived(disk)
    assert not store.has(DIGEST)
    assert arrival.hash() == DIGEST
    store.adopt(DIGEST, arrival.folder, arrival.name)
    arrival.close()
    assert store.read(DIGEST) == DATA
    assert left(disk) == []


def test_what_was_noted_is_there_after_a_restart_and_the_rest_is_a_gap(disk: FolderDisk) -> None:
    arrival = Arrival(disk, DIGEST)
    arrival.begin(len(DATA))
    arrival.write(0, DATA[:3000])
    arrival.note([(3000, len(DATA))])
    arrival.write(3000, DATA[3000:4000])  # and this was not noted: it comes again
    arrival.close()
    again = Arrival(disk, DIGEST)
    assert (again.size_bytes, again.gaps) == (len(DATA), [(3000, len(DATA))])
    again.write(3000, DATA[3000:])
    PieceStore(disk).adopt(DIGEST, again.folder, again.name)
    again.close()
    assert PieceStore(disk).read(DIGEST) == DATA


def test_opening_the_store_leaves_what_is_arriving_alone(disk: FolderDisk) -> None:
    arrival = arrived(disk)
    PieceStore(disk)
    arrival.close()
    assert left(disk) == [DIGEST.hex()]


@pytest.mark.parametrize("damage", ["note", "length", "gaps", "no note"])
def test_a_note_that_does_not_fit_its_file_is_as_good_as_none(disk: FolderDisk, damage: str) -> None:
    arrival = arrived(disk)
    arrival.note([(5, 10)])
    arrival.close()
    note, file = disk.root / PARTIAL / f"{DIGEST.hex()}.gaps", disk.root / PARTIAL / DIGEST.hex()
    match damage:
        case "note":
            note.write_bytes(note.read_bytes()[:-3])
        case "length":
            os.truncate(file, len(DATA) - 1)
        case "gaps":
            arrival = Arrival(disk, DIGEST)
            arrival.note([(10, 5)])
            arrival.close()
        case _:
            note.unlink()
    again = Arrival(disk, DIGEST)
    assert (again.size_bytes, again.gaps) == (0, [])
    again.close()
    assert left(disk) == []


def test_other_bytes_are_not_adopted_and_are_forgotten(disk: FolderDisk) -> None:
    store, arrival = PieceStore(disk), arrived(disk, bytes(reversed(DATA)))
    with pytest.raises(CheckpointError):
        store.adopt(DIGEST, arrival.folder, arrival.name)
    assert not store.has(DIGEST)
    arrival.discard()
    assert (arrival.size_bytes, arrival.gaps) == (0, [])
    arrival.close()
    assert left(disk) == []


def test_two_who_fetch_the_same_do_not_write_into_one_file(disk: FolderDisk) -> None:
    first, second = Arrival(disk, DIGEST), Arrival(disk, DIGEST)
    assert first.name != second.name
    with pytest.raises(BlockingIOError):
        Arrival(disk, DIGEST)
    first.close()
    second.close()


def test_a_piece_that_another_has_brought_meanwhile_is_kept_as_it_is(disk: FolderDisk) -> None:
    store, arrival = PieceStore(disk), arrived(disk)
    store.put(DIGEST, DATA)
    store.adopt(DIGEST, arrival.folder, arrival.name)
    arrival.close()
    assert store.read(DIGEST) == DATA
    assert left(disk) == []


def test_without_room_it_stays_for_the_next_try(disk: FolderDisk) -> None:
    arrival = arrived(disk)
    arrival.note([])
    with pytest.raises(DiskFull):
        PieceStore(disk, StorePolicy(cap_bytes=len(DATA) - 1)).adopt(DIGEST, arrival.folder, arrival.name)
    arrival.close()
    again = Arrival(disk, DIGEST)
    assert (again.size_bytes, again.gaps) == (len(DATA), [])
    again.close()


def test_a_write_after_its_end_goes_nowhere(disk: FolderDisk) -> None:
    arrival = arrived(disk)
    arrival.close()
    other = (disk.root / "other").open("w+b")  # may get the same descriptor
    with other:
        writing = threading.Thread(target=arrival.write, args=(0, b"late"))
        writing.start()
        writing.join()
        other.seek(0)
        assert other.read() == b""


def test_it_says_when_it_is_time_to_make_durable_what_came(disk: FolderDisk) -> None:
    arrival = Arrival(disk, DIGEST)
    arrival.begin(NOTE_BYTES)
    half = memoryview(bytes(NOTE_BYTES // 2))
    assert [arrival.write(0, half), arrival.write(len(half), half)] == [False, True]
    arrival.note([])
    assert arrival.write(0, b"a") is False
    arrival.discard()
    arrival.close()


def test_what_nobody_wants_any_more_is_forgotten(disk: FolderDisk) -> None:
    arrival = arrived(disk)
    arrival.note([])
    arrival.close()
    forget(disk, [DIGEST])
    assert left(disk) == []
