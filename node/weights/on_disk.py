"""The experts that a node reads from disk when it is asked for them: what of them is here, and how one is read.

Between the choice (`holdings/tiers.py`) and serving (`serving/cold.py`).
"""

from collections.abc import Callable
from contextlib import aclosing
from functools import partial

from shoal.experts.backend import ExpertBackend
from shoal.experts.packed_cache import PackedCache
from shoal.experts.store import ModelStore
from shoal.node.holdings.tiers import Tiers
from shoal.node.serving.cold import ColdExperts, LatestExperts
from shoal.node.weights.filling import Supply
from shoal.node.weights.loading import without
from shoal.node.weights.packing import load_one

Source = tuple[ModelStore, ExpertBackend, PackedCache | None]
"""What `load_one` reads with."""


async def cold_experts(
    tiers: Tiers, num_latest: int, supply: Supply, source: Source, clock: Callable[[], float], is_anchor: bool
) -> ColdExperts | None:
    """What can be read now; None for a node that keeps all in memory. num_latest: experts that were read and stay.
    clock: seconds, for durations.

    The whole of an anchor is brought here first, for it has nothing else to offer; what others lack comes while they
    serve (`tending.py`).

    Raises:
        As `Supply.arriving`.
    """
    if not tiers.cold:
        return None
    missing = await supply.missing(tiers.cold)
    if is_anchor:
        async with aclosing(supply.arriving(missing)) as arriving:
            async for _ in arriving:
                pass
        missing = {}
    latest = LatestExperts(partial(load_one, *source), num_latest, clock)
    return ColdExperts(without(tiers.cold, missing), latest)
