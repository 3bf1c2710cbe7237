"""From a user's wish to experts in memory: what fits, what is rare, and then read, verify, pack.

Between the settings and the server. Knows memory and the directory's counts; the choice itself is `assignment.py`.
"""

from collections.abc import Callable

import psutil

from shoal.experts.backend import ExpertBackend, PackedExpert
from shoal.experts.choose_backend import KernelChoice
from shoal.experts.store import ModelStore
from shoal.experts.worker import Worker
from shoal.node.assignment import Holding
from shoal.node.placement import HolderFacts, Shape, choose, look
from shoal.node.server import Held
from shoal.node.settings import NodeSettings
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.net.directory import Directory

DEFAULT_SHARE_OF_FREE_MEMORY = 0.5
"""A guest takes half of what is free, not all."""


def default_threads() -> int:
    """Half of this machine's cores, at least one."""
    return max(1, (psutil.cpu_count() or 1) // 2)


StageProgress = Callable[[str, int, int], None]
"""Called, from any thread, with what is being done, bytes done, bytes in all."""


def check_memory(settings: NodeSettings, store: ModelStore, backend: ExpertBackend, holding: Holding) -> None:
    """Refuse a holding that does not fit `--share`, or the machine.

    Raises:
        InvalidRequest: it does not fit.
    """
    count = sum(len(experts) for experts in holding.values())
    needed = count * backend.resident_bytes(store.spec.expert, store.weight_format)
    limit = _limit_bytes(settings, backend)
    if needed > limit:
        raise InvalidRequest(
            f"{count} experts take {needed / 1e6:,.0f} MB here and {limit / 1e6:,.0f} MB are to be had"
        )


def _limit_bytes(settings: NodeSettings, backend: ExpertBackend) -> int:
    """What experts may take: `--share`, and where a device has a limit of its own, within that; else what is free."""
    if settings.share_bytes is None:
        return backend.free_bytes()
    return min(settings.share_bytes, backend.free_bytes()) if _has_device_limit(settings) else settings.share_bytes


def _has_device_limit(settings: NodeSettings) -> bool:
    return settings.vram_bytes is not None and settings.kernel is KernelChoice.CUDA


async def choose_holding(
    settings: NodeSettings, store: ModelStore, backend: ExpertBackend, directory: Directory, peer: PeerId
) -> Holding:
    """Ask the directory what is rare and take as much of it as fits.

    Raises:
        InvalidRequest: not even one expert fits.
    """
    share = _limit_bytes(settings, backend)
    if settings.share_bytes is None and not _has_device_limit(settings):
        share = int(share * DEFAULT_SHARE_OF_FREE_MEMORY)
    num_experts = share // backend.resident_bytes(store.spec.expert, store.weight_format)
    if num_experts < 1:
        raise InvalidRequest(f"a share of {share} bytes holds no expert of this model")
    shape = Shape.of(store.spec)
    found = await directory.lookup(store.manifest.root, store.spec.moe_layers)
    holders = [
        HolderFacts(layer, record.experts, 0.0, True, record.capacity_mmacs)
        for layer, records in found.items()
        for record in records
    ]
    return shape.holding(choose(shape, look(shape, holders), num_experts, peer))


async def load(
    store: ModelStore, backend: ExpertBackend, worker: Worker, holding: Holding, progress: StageProgress
) -> Held:
    """Read, verify and pack the experts of a holding, on the kernel's thread.

    Raises:
        CheckpointError: a weight is not what the manifest says.
    """
    experts: dict[LayerId, dict[ExpertId, PackedExpert]] = {layer: {} for layer in holding}
    wanted = [(layer, expert) for layer, ids in holding.items() for expert in ids]
    expert_bytes = backend.resident_bytes(store.spec.expert, store.weight_format)
    for done, (layer, expert) in enumerate(wanted, 1):
        experts[layer][expert] = await worker.run(_load_one, store, backend, layer, expert)
        progress("loading", done * expert_bytes, len(wanted) * expert_bytes)
    return Held(store.manifest.root, store.weight_format, store.spec.expert, experts)


def _load_one(store: ModelStore, backend: ExpertBackend, layer: LayerId, expert: ExpertId) -> PackedExpert:
    return backend.pack(store.spec.expert, store.expert(layer, expert))
