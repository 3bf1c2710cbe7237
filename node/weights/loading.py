"""From a user's wish to experts in memory: what fits, and then read, verify, pack.

Between the settings and the server. Knows memory; what to hold where nobody said so is `joining.py`.
"""

from collections.abc import Callable

import psutil

from shoal.experts.backend import ExpertBackend, PackedExpert
from shoal.experts.choose_backend import KernelChoice
from shoal.experts.packed_cache import PackedCache
from shoal.experts.store import ModelStore
from shoal.experts.weight_formats import stored_bytes
from shoal.experts.worker import Worker
from shoal.node.holdings.assignment import Holding
from shoal.node.holdings.keeper import Pack
from shoal.node.serving.self_check import check_expert
from shoal.node.serving.server import Held
from shoal.node.settings import NodeSettings
from shoal.node.weights.packing import load_one
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.ids import ExpertId, LayerId

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


def is_tiered(settings: NodeSettings) -> bool:
    """Whether experts are read from disk when somebody asks for them."""
    return settings.anchor or settings.cold_bytes > 0


def num_on_disk(settings: NodeSettings, store: ModelStore) -> int:
    """How many experts the node may read from disk beside those in memory.

    Raises:
        InvalidRequest: not even one fits; or it is an anchor, which has all on disk.
    """
    if not settings.cold_bytes:
        return 0
    if settings.anchor:
        raise InvalidRequest("an anchor has every expert on disk: give --anchor or --cold, not both")
    one = stored_bytes(store.spec.expert, store.weight_format)
    if settings.cold_bytes < one:
        raise InvalidRequest(
            f"one expert of {store.name} takes {one / 1e6:,.3f} MB on disk and {settings.cold_bytes / 1e6:,.3f} MB are"
            " given for those that are read from there; give more, or none"
        )
    return settings.cold_bytes // one


def capacity(settings: NodeSettings, store: ModelStore, backend: ExpertBackend, holding: Holding | None) -> int:
    """How many experts this node may hold in all; holding: what its owner named, None: nothing.

    Raises:
        InvalidRequest: not even one expert fits.
    """
    if settings.share_bytes is None and holding is not None and not is_tiered(settings):
        return sum(map(len, holding.values()))
    share = _limit_bytes(settings, backend)
    if settings.share_bytes is None and not _has_device_limit(settings):
        share = int(share * DEFAULT_SHARE_OF_FREE_MEMORY)
    num_experts = share // backend.resident_bytes(store.spec.expert, store.weight_format)
    if num_experts < 1:
        raise InvalidRequest(f"a share of {share} bytes holds no expert of this model")
    return num_experts


def without(holding: Holding, missing: Holding) -> Holding:
    """What of a holding is not missing; layers of which all is missing stay, empty."""
    return {
        layer: tuple(expert for expert in experts if expert not in missing.get(layer, ()))
        for layer, experts in holding.items()
    }


def packer(store: ModelStore, backend: ExpertBackend, worker: Worker, cache: PackedCache | None = None) -> Pack:
    """Brings single experts that are on this machine into memory: mapped, or read, verified and packed, on the kernel's
    thread, and the first one of each layer asked what clients will ask."""
    checked: set[LayerId] = set()

    async def pack(layer: LayerId, expert: ExpertId) -> PackedExpert:
        packed = await worker.run(load_one, store, backend, cache, layer, expert)
        if layer not in checked:
            await worker.run(check_expert, store.spec.expert, backend, store.manifest, (layer, expert), packed)
            checked.add(layer)
        return packed

    return pack


async def load(
    store: ModelStore,
    backend: ExpertBackend,
    worker: Worker,
    holding: Holding,
    progress: StageProgress,
    cache: PackedCache | None = None,
) -> Held:
    """Map the experts of a holding, or read, verify and pack them, on the kernel's thread.

    Raises:
        CheckpointError: a weight is not what the manifest says.
    """
    experts: dict[LayerId, dict[ExpertId, PackedExpert]] = {layer: {} for layer in holding}
    wanted = [(layer, expert) for layer, ids in holding.items() for expert in ids]
    expert_bytes = backend.resident_bytes(store.spec.expert, store.weight_format)
    for done, (layer, expert) in enumerate(wanted, 1):
        experts[layer][expert] = await worker.run(load_one, store, backend, cache, layer, expert)
        progress("loading", done * expert_bytes, len(wanted) * expert_bytes)
    return Held(store.manifest.root, store.weight_format, store.spec.expert, experts)
