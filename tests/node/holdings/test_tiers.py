"""Memory and disk are parted so that no expert is in both, what its owner names comes first, and disks differ."""

import random
from dataclasses import replace

import pytest

from shoal.node.holdings.assignment import Holding
from shoal.node.holdings.joining import Place
from shoal.node.holdings.tiers import Memory, Tiers, choose_tiers, part_memory
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.record_book import RecordBook
from shoal.simulations.virtual.loop import run_virtual
from tests.node.holdings.test_joining import SHAPE, place_of

EVERYTHING = 48
"""Experts of the shape of these tests."""


def num(holding: Holding) -> int:
    return sum(map(len, holding.values()))


def places(holding: Holding) -> set[tuple[LayerId, ExpertId]]:
    return {(layer, expert) for layer, experts in holding.items() for expert in experts}


def chosen(capacity: int, named: Holding | None, num_cold: int, others: list[Tiers] | None = None) -> Tiers:
    """What a node chooses that comes into a swarm of these."""
    rng = random.Random(1)

    async def main() -> Tiers:
        book = RecordBook()
        for each in others or []:
            there = place_of(book, rng, 0).announcer
            await there.declare(replace(there.claim, holding=each.resident, cold=each.cold))
        return await choose_tiers(place_of(book, rng, capacity), named, num_cold, is_anchor=False, is_alone=not others)

    return run_virtual(main, rng, 600.0)


@pytest.mark.parametrize(
    ("capacity", "num_cold", "is_anchor", "parts"),
    [
        (136, 0, False, Memory(136, 0)),
        (136, 909, False, Memory(119, 17)),
        (136, 5, False, Memory(131, 5)),
        (2, 100, False, Memory(1, 1)),
        (3, 0, True, Memory(0, 3)),
    ],
)
def test_an_eighth_of_memory_is_for_what_was_read_lately_and_all_of_an_anchors(
    capacity: int, num_cold: int, is_anchor: bool, parts: Memory
) -> None:
    assert part_memory(capacity, num_cold, is_anchor) == parts
    assert parts.num_resident + parts.num_latest <= capacity


def test_memory_for_one_expert_is_too_little_for_two_tiers() -> None:
    with pytest.raises(InvalidRequest, match="too little"):
        part_memory(1, 10, is_anchor=False)


def test_an_anchor_has_all_that_is_named_on_disk() -> None:
    async def main() -> Tiers:
        named: Holding = {LayerId(1): (ExpertId(3),)}
        return await choose_tiers(place_of(RecordBook(), random.Random(1), 0), named, 0, is_anchor=True, is_alone=True)

    assert run_virtual(main, random.Random(1), 60.0) == Tiers({}, {LayerId(1): (ExpertId(3),)})


def test_without_a_disk_what_is_named_is_held_and_nothing_else() -> None:
    named: Holding = {LayerId(1): (ExpertId(3),)}
    assert chosen(16, named, 0) == Tiers(named, {})


@pytest.mark.parametrize("num_cold", [1, 8, 30, 100])
def test_what_the_node_chooses_itself_is_in_memory_or_on_disk_and_never_in_both(num_cold: int) -> None:
    tiers = chosen(16, None, num_cold)
    assert num(tiers.resident) == 16
    assert num(tiers.cold) == min(num_cold, EVERYTHING - 16)
    assert places(tiers.resident).isdisjoint(places(tiers.cold))
    assert places(tiers.all) == places(tiers.resident) | places(tiers.cold)
    assert tiers.choice is not None


def test_what_is_named_and_fits_is_in_memory_and_the_disk_has_others() -> None:
    named = {LayerId(2): tuple(map(ExpertId, range(8)))}
    tiers = chosen(16, named, 12)
    assert tiers.resident == named
    assert num(tiers.cold) == 12
    assert places(tiers.cold).isdisjoint(places(named))


def test_of_what_is_named_and_does_not_fit_the_rarest_is_in_memory_and_the_rest_on_disk_before_anything_else() -> None:
    """Others hold the lower half of each layer."""
    lower = {layer: tuple(map(ExpertId, range(8))) for layer in SHAPE.layers}
    everywhere = {layer: tuple(map(ExpertId, range(16))) for layer in SHAPE.layers[:2]}
    tiers = chosen(16, everywhere, 20, [Tiers(lower, {}), Tiers(lower, {})])
    assert places(tiers.resident) == {(layer, ExpertId(e)) for layer in SHAPE.layers[:2] for e in range(8, 16)}
    assert places(everywhere) - places(tiers.resident) <= places(tiers.cold)
    assert num(tiers.cold) == 20


def test_more_than_memory_and_disk_can_have_is_refused_with_figures() -> None:
    everything = {layer: tuple(map(ExpertId, range(16))) for layer in SHAPE.layers}
    with pytest.raises(InvalidRequest, match="48 experts are named; 16 fit in memory and 31 on disk"):
        chosen(16, everything, 31)
    assert num(chosen(16, everything, 32).cold) == 32


def test_disks_have_what_no_other_disk_has() -> None:
    lower = {layer: tuple(map(ExpertId, range(8))) for layer in SHAPE.layers}
    upper = {layer: tuple(map(ExpertId, range(8, 16))) for layer in SHAPE.layers}
    tiers = chosen(1, {LayerId(1): (ExpertId(0),)}, 12, [Tiers({}, lower)])
    assert places(tiers.cold) <= places(upper)


def test_what_others_have_on_disk_makes_nothing_less_rare_for_memory() -> None:
    """An anchor of everything is there: a newcomer fills its memory as if it were not."""

    async def main(with_anchor: bool) -> Holding:
        rng, book = random.Random(1), RecordBook()
        there, place = place_of(book, rng, 0).announcer, place_of(book, rng, 16)
        if with_anchor:
            everything = {layer: tuple(map(ExpertId, range(16))) for layer in SHAPE.layers}
            await there.declare(replace(there.claim, cold=everything, read_ms=5))
        return (await choose_tiers(place, None, 0, is_anchor=False, is_alone=False)).resident

    with_anchor = run_virtual(lambda: main(True), random.Random(1), 60.0)
    assert with_anchor == run_virtual(lambda: main(False), random.Random(1), 60.0)


def test_the_choice_of_a_place_is_of_those_that_stay() -> None:
    """The memory for what was read lately is no room for what a node chooses."""

    async def main() -> tuple[Place, Tiers]:
        memory = part_memory(16, 20, is_anchor=False)
        place = place_of(RecordBook(), random.Random(1), memory.num_resident)
        return place, await choose_tiers(place, None, 20, is_anchor=False, is_alone=True)

    place, tiers = run_virtual(main, random.Random(1), 60.0)
    assert num(tiers.resident) == place.capacity == 14
