"""What goes first when the owner's limit on disk is reached: packed experts, then pieces that nobody here needs.

Of those, what the swarm has most of, by the directory's count of holders; pieces of the trunk and of other models have
no holders that are known, and go last, the longest unused first. Knows a survey's counts; asks no directory itself.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from shoal.experts.pieces.model import PieceModel
from shoal.experts.pieces.store import EvictionOrder, StoredPiece
from shoal.experts.store import ModelStore
from shoal.experts.weight_formats import stored_bytes
from shoal.node.holdings.assignment import Holding
from shoal.node.holdings.joining import Place
from shoal.node.holdings.placement import Shape
from shoal.node.holdings.survey import survey
from shoal.node.holdings.takeover import Counts
from shoal.node.log_events import SwarmNotSeen, log_event
from shoal.node.settings import NodeSettings
from shoal.node.weights.packing import LOGS_BYTES, cache_dir, make_room, used_bytes
from shoal.protocol.errors import InvalidRequest, ShoalError

LONG_AFTER = 1e20
"""Above any time of a last use, in nanoseconds: one replica more weighs more than any age."""

HEAD_BYTES = 4096
"""Beside its weights a piece has names and shapes."""


async def limit_pieces(settings: NodeSettings, store: ModelStore, holding: Holding, place: Place) -> None:
    """Make room for what the holding lacks, and let the store evict beyond the owner's limit from now on.

    Without a limit, or a model in pieces, nothing. A directory that does not answer leaves the order to the last use.

    Raises:
        InvalidRequest: what the limit leaves for weights is less than one expert.
    """
    if settings.guest.disk_bytes is None or not isinstance(store, PieceModel):
        return
    one, left = stored_bytes(store.spec.expert, store.weight_format), settings.guest.disk_bytes - LOGS_BYTES
    if left < one:
        raise InvalidRequest(
            f"one expert of {store.name} takes {one / 1e6:,.3f} MB and the limit on disk leaves {left / 1e6:,.3f} MB"
            f" beside {LOGS_BYTES / 1e6:,.1f} MB for logs and manifests; give more, or no limit"
        )
    try:
        found = await place.directory.lookup(store.manifest.root, place.shape.layers)
    except ShoalError as error:
        log_event(SwarmNotSeen(type(error).__name__))
        found = {}
    replicas = survey(place.shape, found, place.me, 0, place.clock()).replicas
    order = plentiful_first(holders_by_piece(store, place.shape, replicas))
    await asyncio.to_thread(_limit, settings, settings.guest.disk_bytes, store, holding, order)


def holders_by_piece(store: ModelStore, shape: Shape, replicas: Counts) -> dict[bytes, int]:
    """Holders of each expert's piece, beside us. replicas: i32[L, E]."""
    return {
        digest: int(count)
        for layer, row in zip(shape.layers, replicas, strict=True)
        for digest, count in zip(store.manifest.experts[layer], row, strict=True)
    }


def plentiful_first(holders: Mapping[bytes, int]) -> EvictionOrder:
    """The order of eviction: most holders first, among equals the longest unused."""

    def order(piece: StoredPiece) -> float:
        return piece.used_at_ns - LONG_AFTER * holders.get(piece.digest, 0)

    return order


def _limit(settings: NodeSettings, limit_bytes: int, store: PieceModel, holding: Holding, order: EvictionOrder) -> None:
    missing = store.missing((layer, expert) for layer, experts in holding.items() for expert in experts)
    one = stored_bytes(store.spec.expert, store.weight_format) + HEAD_BYTES
    make_room(settings, len(missing) * one)
    others = used_bytes(settings) - _counted_bytes(store, cache_dir(settings))
    store.shelf.limit(max(0, limit_bytes - LOGS_BYTES - others), order)


def _counted_bytes(store: PieceModel, directory: Path) -> int:
    """Of the pieces, if their store is in the cache directory; it may be on another disk."""
    is_inside = store.shelf.root.resolve().is_relative_to(directory.resolve())
    return store.shelf.store.size_bytes if is_inside else 0
