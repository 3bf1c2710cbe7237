"""What a node has in memory and what it reads from its disk when it is asked for that: how memory is parted, and which
experts are which.

In memory: what its owner named, or what the swarm lacks most; of more than fits, what it lacks most. On disk: what else
its owner named, then what nobody else reads from disk either. An anchor has everything on its disk.
"""

from dataclasses import dataclass

from shoal.node.holdings.assignment import Holding
from shoal.node.holdings.joining import Choice, Place, find_place
from shoal.node.holdings.placement import Mask, choose
from shoal.node.holdings.survey import Survey, survey
from shoal.protocol.errors import InvalidRequest

LATEST_SHARE = 8
"""Of the memory for experts, an eighth is for those that were read from disk lately: two layers' worth of a token at
DeepSeek-V3's 8 experts and 6 GB."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Experts that fit: of those that stay, and of those that were read lately."""

    num_resident: int
    num_latest: int


@dataclass(frozen=True, slots=True)
class Tiers:
    """What is in memory and what is on disk; no expert is in both."""

    resident: Holding
    cold: Holding
    choice: Choice | None = None
    """Why that is in memory, if it was left to the node."""

    @property
    def all(self) -> Holding:
        """Both."""
        layers = sorted({*self.resident, *self.cold})
        both = {layer: {*self.resident.get(layer, ()), *self.cold.get(layer, ())} for layer in layers}
        return {layer: tuple(sorted(experts)) for layer, experts in both.items()}


def part_memory(capacity: int, num_cold: int, is_anchor: bool) -> Memory:
    """What of the memory for `capacity` experts is for which.

    Raises:
        InvalidRequest: there must be room for one of each.
    """
    if is_anchor:
        return Memory(0, capacity)
    if not num_cold:
        return Memory(capacity, 0)
    if capacity < 2:
        raise InvalidRequest("memory for one expert is too little for a node that reads others from disk; give more")
    num_latest = min(num_cold, max(1, capacity // LATEST_SHARE))
    return Memory(capacity - num_latest, num_latest)


async def choose_tiers(place: Place, named: Holding | None, num_cold: int, is_anchor: bool, is_alone: bool) -> Tiers:
    """Choose. place: its capacity is what may stay in memory. named: by the owner. num_cold: experts that may be on
    disk besides.

    Raises:
        NetworkError: the directory can not be read or written. InvalidRequest: more is named than both have room for.
    """
    if named is not None and is_anchor:
        return Tiers({}, named)
    if not num_cold:
        if named is not None:
            return Tiers(named, {})
        choice = await find_place(place, is_alone)
        return Tiers(choice.holding, {}, choice)
    if named is None:
        choice = await find_place(place, is_alone)
        resident = place.shape.mask(choice.holding)
        return Tiers(choice.holding, place.shape.holding(await _rarest_on_disk(place, ~resident, num_cold)), choice)
    return await _of_named(place, place.shape.mask(named), num_cold)


async def _of_named(place: Place, named: Mask, num_cold: int) -> Tiers:
    shape, num_named = place.shape, int(named.sum())
    if num_named > place.capacity + num_cold:
        raise InvalidRequest(
            f"{num_named} experts are named; {place.capacity} fit in memory and {num_cold} on disk: name fewer,"
            " or give more of either"
        )
    resident = named
    if num_named > place.capacity:
        resident = choose(shape, (await _others(place)).view, place.capacity, place.me.peer, named)
    cold = named & ~resident
    cold = cold | await _rarest_on_disk(place, ~named, num_cold - int(cold.sum()))
    return Tiers(shape.holding(resident), shape.holding(cold))


async def _rarest_on_disk(place: Place, allowed: Mask, num_cold: int) -> Mask:
    """bool[L, E]: of these, what fewest others have in memory or on disk."""
    others = await _others(place, counts_cold=True)
    return choose(place.shape, others.view, num_cold, place.me.peer, allowed)


async def _others(place: Place, counts_cold: bool = False) -> Survey:
    found = await place.directory.lookup(place.announcer.claim.model_root, place.shape.layers)
    return survey(place.shape, found, place.me, place.capacity, place.clock(), counts_cold=counts_cold)
