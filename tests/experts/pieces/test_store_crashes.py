"""Ten thousand power cuts: no verified piece is lost, no other bytes are ever given out."""

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from blake3 import blake3

from shoal.experts.pieces.store import PieceStore, StorePolicy
from tests.experts.pieces.crashing_disk import CrashingDisk, PowerCut

CUTS_PER_SEED = 1000
BLOBS = {blake3(blob).digest(): blob for blob in (bytes([i]) * (7 + 23 * i) for i in range(12))}
CAP_BYTES = 900
"""Of 1,602 bytes: evictions happen all the time."""

MOST_ACTS = 300
"""Before the power goes anyway: putting what is there already takes no step of the disk."""


class Machine:
    """A machine that loses its power again and again; `sure` are the pieces that must be there."""

    def __init__(self, seed: int, disk: CrashingDisk) -> None:
        self.chooser = Random(seed)
        self.disk = disk
        self.sure: set[bytes] = set()
        self.pinned = frozenset(list(BLOBS)[:2])
        self.num_lost = 0

    def live_until_the_power_goes(self) -> None:
        self.disk.steps_left = self.chooser.randrange(1, 60)
        try:
            store = self._open()
            for _ in range(MOST_ACTS):
                self._act(store)
        except PowerCut:
            there = {bytes.fromhex(name) for folder, name in self.disk.names if folder == "pieces"}
            self.sure &= there  # what is not was evicted before the cut, on purpose
        self.disk = self.disk.after_power_cut(self.chooser)

    def check(self) -> None:
        store = self._open()
        for piece in store.pieces():
            assert store.read(piece.digest) in (None, BLOBS[piece.digest]), "bytes that are not the piece's"
        missing = {digest for digest in sorted(self.sure) if store.read(digest) is None}
        self.num_lost += len(missing)
        self.sure -= missing
        assert not self.disk.files("arriving"), "half a piece stayed"

    def rot(self) -> None:
        """A bit of a piece flips on the platter."""
        there = sorted((place, inode.cached) for place, inode in self.disk.names.items() if place[0] == "pieces")
        if not there:
            return
        place, inode = (chosen := self.chooser.choice(there)[0]), self.disk.names[chosen]
        flipped = bytearray(inode.cached)
        flipped[self.chooser.randrange(len(flipped))] ^= 1 << self.chooser.randrange(8)
        inode.cached = inode.durable = bytes(flipped)
        self.sure.discard(bytes.fromhex(place[1]))

    def _open(self) -> PieceStore:
        return PieceStore(self.disk, StorePolicy(cap_bytes=CAP_BYTES, pinned=lambda: self.pinned))

    def _act(self, store: PieceStore) -> None:
        digest = self.chooser.choice(list(BLOBS))
        if self.chooser.random() < 0.7:
            store.put(digest, BLOBS[digest])
            self.sure.add(digest)
            self.sure &= {piece.digest for piece in store.pieces()}
            assert store.size_bytes <= CAP_BYTES or not self.disk.syncs_folders
        else:
            assert store.read(digest) in (None, BLOBS[digest])
            assert digest not in self.sure or store.read(digest) == BLOBS[digest]


@pytest.mark.parametrize("seed", range(10))
def test_a_power_cut_loses_no_verified_piece_and_serves_no_unverified_one(seed: int) -> None:
    machine = Machine(seed, CrashingDisk())
    num_sure = 0
    for _ in range(CUTS_PER_SEED):
        machine.live_until_the_power_goes()
        machine.check()
        num_sure += len(machine.sure)
    assert machine.num_lost == 0
    assert num_sure > CUTS_PER_SEED, "the pieces that had to survive were some"


@pytest.mark.parametrize("seed", range(2))
def test_bits_that_flip_on_the_disk_are_noticed_and_the_piece_is_gone(seed: int) -> None:
    machine = Machine(seed, CrashingDisk())
    for _ in range(200):
        machine.live_until_the_power_goes()
        machine.rot()
        machine.check()
    assert machine.num_lost == 0


@pytest.mark.parametrize("broken", ["syncs_files", "syncs_folders"])
def test_a_store_that_does_not_sync_would_lose_pieces_here_but_serve_nothing_wrong(broken: str) -> None:
    disk = CrashingDisk(syncs_files=broken != "syncs_files", syncs_folders=broken != "syncs_folders")
    machine = Machine(1, disk)
    for _ in range(200):
        machine.live_until_the_power_goes()
        machine.check()
    assert machine.num_lost > 0, "these cuts would not notice a missing fsync"


KILLED_AT_WORK = """
import os, signal, sys
from pathlib import Path
from random import Random
from blake3 import blake3
from shoal.experts.pieces.disk import FolderDisk
from shoal.experts.pieces.store import PieceStore

chooser, blobs = Random(1), [bytes([i]) * 100_000 for i in range(50)]
names = [blake3(blob).digest() for blob in blobs]
for round in range(10):
    root = Path(sys.argv[1]) / str(round)
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        store = PieceStore(FolderDisk(root))
        for i, blob in enumerate(blobs):
            store.put(names[i], blob)
            os.write(tell, bytes([i]))
        signal.pause()
    os.close(tell)
    kept = [os.read(told, 1)[0] for _ in range(chooser.randrange(1, 20))]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(told, 64):
        kept += more
    os.close(told)
    store = PieceStore(FolderDisk(root))
    assert all(store.read(names[i]) == blobs[i] for i in kept), "a piece whose put returned is lost"
    assert all(store.read(piece.digest) is not None for piece in store.pieces()), "half a piece got its name"
    assert not os.listdir(root / "arriving")
print("unharmed")
"""


@pytest.mark.socket
def test_a_process_killed_at_any_moment_leaves_whole_pieces_only(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_AT_WORK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.stdout == "unharmed\n", done.stderr
