"""A file system that forgets: after a power cut only what was synced is sure, the rest is torn, lost or out of order.

What may happen to bytes that were not synced: every sector is new, old, or zeros; the file has any length between. To
names that were not synced: each change has happened or not, whatever the order they were made in.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

from shoal.experts.pieces.disk import DiskFile

SECTOR = 16

Place = tuple[str, str]


class PowerCut(BaseException):
    """Nothing after this was done."""


@dataclass
class Inode:
    cached: bytes = b""
    durable: bytes = b""


@dataclass
class Change:
    """A name that now stands for a file, or (None) for none, and is not durable yet."""

    place: Place
    inode: Inode | None


@dataclass
class CrashingDisk:
    steps_left: int | None = None
    """Until the power goes; None: it does not."""
    syncs_files: bool = True
    syncs_folders: bool = True
    names: dict[Place, Inode] = field(default_factory=dict)
    durable_names: dict[Place, Inode] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    used: dict[Place, int] = field(default_factory=dict)
    clock: int = 0
    is_locked: bool = False

    def make_folder(self, folder: str) -> None:
        self._step()

    def write(self, folder: str, name: str, data: bytes | bytearray) -> None:
        inode = Inode()
        self._step()
        self._name((folder, name), inode)
        for start in range(0, len(data), 3 * SECTOR):
            self._step()
            inode.cached = bytes(data[: start + 3 * SECTOR])

    def sync_file(self, folder: str, name: str) -> None:
        self._step()
        if self.syncs_files:
            inode = self.names[folder, name]
            inode.durable = inode.cached

    def rename(self, folder: str, name: str, new_folder: str, new_name: str) -> None:
        self._step()
        inode = self.names[folder, name]
        self._name((new_folder, new_name), inode)
        self._name((folder, name), None)

    def sync_folder(self, folder: str) -> None:
        self._step()
        if self.syncs_folders:
            for change in [each for each in self.changes if each.place[0] == folder]:
                _apply(self.durable_names, change)
                self.changes.remove(change)

    def read(self, folder: str, name: str) -> bytearray | None:
        inode = self.names.get((folder, name))
        return None if inode is None else bytearray(inode.cached)

    def read_range(self, folder: str, name: str, begin: int, size: int) -> bytearray | None:
        data = self.read(folder, name)
        return None if data is None else data[begin : begin + size]

    def remove(self, folder: str, name: str) -> None:
        self._step()
        if (folder, name) in self.names:
            self._name((folder, name), None)

    def mark_used(self, folder: str, name: str) -> None:
        self.clock += 1
        self.used[folder, name] = self.clock

    def find(self, folder: str, name: str) -> DiskFile | None:
        return next((file for file in self.files(folder) if file.name == name), None)

    def files(self, folder: str) -> list[DiskFile]:
        return [
            DiskFile(place[1], len(inode.cached), self.used.get(place, 0))
            for place, inode in self.names.items()
            if place[0] == folder
        ]

    @contextmanager
    def locked(self) -> Iterator[None]:
        assert not self.is_locked, "the lock is not re-entrant"
        self.is_locked = True
        try:
            yield
        finally:
            self.is_locked = False

    def after_power_cut(self, chooser: Random) -> "CrashingDisk":
        """What a machine finds when it starts again."""
        names = dict(self.durable_names)
        for change in chooser.sample(self.changes, len(self.changes)):
            if chooser.random() < 0.5:
                _apply(names, change)
        survivors = {id(inode): _torn(inode, chooser) for inode in names.values()}
        kept = {place: Inode(survivors[id(inode)], survivors[id(inode)]) for place, inode in names.items()}
        return CrashingDisk(
            None, self.syncs_files, self.syncs_folders, dict(kept), dict(kept), [], dict(self.used), self.clock
        )

    def _name(self, place: Place, inode: Inode | None) -> None:
        change = Change(place, inode)
        _apply(self.names, change)
        self.changes.append(change)

    def _step(self) -> None:
        if self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left < 0:
                raise PowerCut


def _apply(names: dict[Place, Inode], change: Change) -> None:
    if change.inode is None:
        names.pop(change.place, None)
    else:
        names[change.place] = change.inode


def _torn(inode: Inode, chooser: Random) -> bytes:
    if inode.cached == inode.durable:
        return inode.durable
    size = chooser.randint(min(len(inode.durable), len(inode.cached)), max(len(inode.durable), len(inode.cached)))
    old, new = inode.durable.ljust(size, b"\0"), inode.cached.ljust(size, b"\0")
    sectors = [chooser.choice((old, new, bytes(size)))[at : at + SECTOR] for at in range(0, size, SECTOR)]
    return b"".join(sectors)[:size]
