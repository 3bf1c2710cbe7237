"""From an expert's weights to what the kernels run, at best without converting them: the packed cache of this machine.

Between store and kernels. What was packed once is mapped the next time; what is damaged there is packed again, and
that is logged. A node that has come up writes what is not in the cache yet, one expert after another, beside its work.
Knows the owner's limit on disk; knows no peers.
"""

import asyncio
from collections.abc import Iterable
from pathlib import Path

from shoal.experts.backend import ExpertBackend, PackedExpert
from shoal.experts.cpu_backend import CpuBackend, CpuExpert
from shoal.experts.locations import default_cache_dir
from shoal.experts.packed_cache import PackedCache, PackedKey
from shoal.experts.pieces.disk import FolderDisk
from shoal.experts.store import ModelStore
from shoal.kernels import cpu
from shoal.node.log_events import PackedDamaged, PackedNotKept, log_event
from shoal.node.logs import state_dir
from shoal.node.serving.server import Held
from shoal.node.settings import NodeSettings
from shoal.protocol.errors import CheckpointError, DiskFull
from shoal.protocol.ids import ExpertId, LayerId

FOLDER = "experts"
"""In the cache directory."""

MIN_EXPERT_BYTES = 1024 * 1024
"""Smaller experts are packed faster than a file of theirs is opened and checked."""

LOGS_BYTES = 32 * 1024 * 1024
"""What the owner's limit keeps for logs, counts and manifests."""

PAUSE_S = 300.0
"""Between two looks for experts that have come since and are not in the cache."""


def open_cache(settings: NodeSettings, store: ModelStore, backend: ExpertBackend) -> PackedCache | None:
    """This machine's cache of packed experts; None: this back end or model has no use for one, or there is no place."""
    if not isinstance(backend, CpuBackend) or store.spec.expert.has_biases:
        return None
    if backend.resident_bytes(store.spec.expert, store.weight_format) < MIN_EXPERT_BYTES:
        return None
    try:
        return _cache(settings)
    except OSError as error:
        log_event(PackedNotKept(str(error)))
        return None


def load_one(
    store: ModelStore, backend: ExpertBackend, cache: PackedCache | None, layer: LayerId, expert: ExpertId
) -> PackedExpert:
    """One expert as the kernels run it: mapped, or else read, verified and packed. Blocking: run it on the worker.

    Raises:
        CheckpointError: a weight is not what the manifest says.
    """
    if cache is not None:
        try:
            found = cache.find(key_of(store, layer, expert))
        except (CheckpointError, OSError) as error:
            log_event(PackedDamaged(f"expert {layer}:{expert}", type(error).__name__))
        else:
            if found is not None:
                return found
    return backend.pack(store.spec.expert, store.expert(layer, expert))


async def keep_packed(cache: PackedCache | None, store: ModelStore, held: Held) -> None:
    """For ever: write what is held and not in the cache yet. Ends when the disk has no room for more.

    *Cancellation:* an expert that is being written is written to its end.
    """
    if cache is None:
        return
    while True:
        if not await keep_all(cache, store, held):
            return
        await asyncio.sleep(PAUSE_S)


async def keep_all(cache: PackedCache, store: ModelStore, held: Held) -> bool:
    """Write what is held now; False, and an event, when the disk has no room for all of it."""
    for layer, expert, packed in _all(held):
        try:
            await asyncio.to_thread(cache.keep, key_of(store, layer, expert), packed)
        except (DiskFull, OSError) as error:
            log_event(PackedNotKept(str(error)))
            return False
    return True


def key_of(store: ModelStore, layer: LayerId, expert: ExpertId) -> PackedKey:
    """What a packed expert of this model is found by."""
    return PackedKey(store.manifest.expert_digest(layer, expert), store.spec.expert, store.weight_format)


def used_bytes(settings: NodeSettings) -> int:
    """What shoal has on disk: caches, logs and states."""
    return sum(_size_bytes(each) for each in (cache_dir(settings), state_dir()))


def make_room(settings: NodeSettings, needed_bytes: int = 0) -> None:
    """Let packed experts go until the owner's limit is kept and there is room for so much, if that is enough."""
    if settings.guest.disk_bytes is not None and cpu.is_available() and (cache_dir(settings) / FOLDER).is_dir():
        _cache(settings).trim(needed_bytes)


def forget_packed(directory: Path, pieces: Iterable[bytes]) -> int:
    """Remove what was packed of a model that goes, in the cache at `directory`; returns the bytes that came free."""
    folder = directory / FOLDER
    return PackedCache(FolderDisk(folder)).forget(pieces) if folder.is_dir() else 0


def _cache(settings: NodeSettings) -> PackedCache:
    limit = settings.guest.disk_bytes
    room = None if limit is None else lambda: limit - LOGS_BYTES - used_bytes(settings)
    return PackedCache(FolderDisk(cache_dir(settings) / FOLDER), room)


def cache_dir(settings: NodeSettings) -> Path:
    """Where caches of this node are."""
    return settings.cache_dir or default_cache_dir()


def _all(held: Held) -> list[tuple[LayerId, ExpertId, CpuExpert]]:
    """What is held now; it changes while it is written."""
    return [
        (layer, expert, packed)
        for layer, experts in held.experts.items()
        for expert, packed in experts.items()
        if isinstance(packed, CpuExpert)
    ]


def _size_bytes(directory: Path) -> int:
    total = 0
    for file in directory.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:  # evicted, or another node's, meanwhile
            continue
    return total
