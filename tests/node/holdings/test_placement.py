"""What a node chooses to hold: rare before popular before near, whole groups, few layers; at any scale."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.node.holdings.placement import Around, HolderFacts, Layout, Shape, SwarmView, choose, look, survival
from shoal.protocol.ids import ExpertId, LayerId, PeerId

SHAPE = Shape((LayerId(1), LayerId(2), LayerId(3)), 16, 4)
V3 = Shape(tuple(LayerId(layer) for layer in range(3, 61)), 256, 32)
PEER = PeerId("12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN")
OTHER = PeerId("12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X")
DAY_S = 86_400.0
NEAR = Around(Layout.MANY_LAYERS)


Numbers = npt.NDArray[np.generic]


def view(expected: Numbers, popularity: Numbers | None = None) -> SwarmView:
    full = np.asarray(expected, np.float32)
    return SwarmView(full, full, np.ones_like(full) if popularity is None else np.asarray(popularity, np.float32))


def empty() -> SwarmView:
    return view(SHAPE.zeros())


def holder(
    layer: int, experts: Iterable[int], age_s: float = DAY_S, is_near: bool = True, mmacs: int = 0
) -> HolderFacts:
    return HolderFacts(LayerId(layer), frozenset(map(ExpertId, experts)), age_s, is_near, mmacs)


def test_the_rarest_groups_are_taken_first_and_whole() -> None:
    counts = np.full(SHAPE.size, 2.0)
    counts[1, 4:8] = 0
    assert SHAPE.holding(choose(SHAPE, view(counts), 4, PEER)) == {2: (4, 5, 6, 7)}


def test_one_missing_expert_makes_its_group_the_rarest() -> None:
    counts = np.full(SHAPE.size, 2.0)
    counts[2, 13] = 0
    assert SHAPE.holding(choose(SHAPE, view(counts), 4, PEER)) == {3: (12, 13, 14, 15)}


def test_groups_of_one_node_lie_in_as_few_layers_as_they_fit() -> None:
    assert len(SHAPE.holding(choose(SHAPE, empty(), 16, PEER))) == 1
    assert len(SHAPE.holding(choose(SHAPE, empty(), 20, PEER))) == 2


def test_two_nodes_that_see_the_same_swarm_choose_differently() -> None:
    assert (choose(SHAPE, empty(), 4, PEER) != choose(SHAPE, empty(), 4, OTHER)).any()


def test_equal_inputs_give_equal_choices() -> None:
    assert (choose(SHAPE, empty(), 7, PEER) == choose(SHAPE, empty(), 7, PEER)).all()


@given(st.integers(0, 60))
def test_a_node_never_takes_more_than_its_budget_and_all_of_it_while_there_is_something(budget: int) -> None:
    assert choose(SHAPE, empty(), budget, PEER).sum() == min(budget, 48)


@given(st.integers(1, 8))
def test_joining_one_after_another_covers_the_model_evenly(per_node: int) -> None:
    counts = SHAPE.zeros()
    for number in range(12):
        counts += choose(SHAPE, view(counts), 4 * per_node, PeerId(f"node {number}"))
    assert counts.max() - counts.min() <= (1 if counts.min() < 2 else 2)  # plenty may differ, for layers' sake


def test_only_what_is_allowed_is_chosen() -> None:
    allowed = np.zeros(SHAPE.size, np.bool_)
    allowed[0, 3:9] = True
    assert SHAPE.holding(choose(SHAPE, empty(), 48, PEER, allowed)) == {1: (3, 4, 5, 6, 7, 8)}


def test_what_does_not_fit_as_a_group_goes_to_the_most_wanted_single_experts() -> None:
    counts = np.full(SHAPE.size, 5.0)
    counts[1] = 0
    popularity = np.ones(SHAPE.size)
    popularity[1, 9] = 3.0
    chosen = SHAPE.holding(choose(SHAPE, view(counts, popularity=popularity), 17, PEER))
    assert len(chosen[LayerId(2)]) == 16
    assert sum(len(experts) for experts in chosen.values()) == 17


def test_rarity_outweighs_popularity_below_the_target_and_popularity_decides_above_it() -> None:
    popularity = np.ones(SHAPE.size)
    popularity[0, :4] = 3.0
    rare = np.full(SHAPE.size, 4.0)
    rare[2, :4] = 1
    assert SHAPE.holding(choose(SHAPE, view(rare, popularity=popularity), 4, PEER)) == {3: (0, 1, 2, 3)}
    even = np.full(SHAPE.size, 4.0)
    assert SHAPE.holding(choose(SHAPE, view(even, popularity=popularity), 4, PEER)) == {1: (0, 1, 2, 3)}


def test_above_the_target_a_node_takes_what_its_zone_lacks() -> None:
    far = [holder(layer, range(16), is_near=False) for layer in SHAPE.layers for _ in range(4)]
    near = [holder(layer, range(16)) for layer in (1, 2) for _ in range(2)]
    assert set(SHAPE.holding(choose(SHAPE, look(SHAPE, [*far, *near]), 16, PEER))) == {3}


def test_a_slow_holder_in_the_zone_counts_for_less_than_a_fast_one() -> None:
    holders = [holder(layer, range(16), mmacs=1000 if layer != 2 else 100) for layer in SHAPE.layers for _ in range(4)]
    assert set(SHAPE.holding(choose(SHAPE, look(SHAPE, holders), 16, PEER))) == {2}


def test_young_holders_count_for_less_because_they_leave_sooner() -> None:
    assert 0.8 < survival(0.0) < survival(3600.0) < survival(DAY_S) < 1
    assert survival(-60.0) == survival(0.0)
    holders = [holder(layer, range(16), age_s=0.0 if layer == 3 else 30 * DAY_S) for layer in SHAPE.layers * 2]
    assert set(SHAPE.holding(choose(SHAPE, look(SHAPE, holders), 16, PEER))) == {3}


def test_layers_and_experts_that_the_model_lacks_are_ignored() -> None:
    assert look(SHAPE, [holder(9, range(4)), holder(1, [99])]).expected.sum() == 0


def test_a_holding_and_its_mask_are_the_same() -> None:
    holding = {LayerId(1): (ExpertId(0), ExpertId(15)), LayerId(3): (ExpertId(7),)}
    assert SHAPE.holding(SHAPE.mask(holding)) == holding


@pytest.mark.parametrize("num_experts", [1, 31, 32, 347, 14_848])
def test_deepseek_v3_is_chosen_from_in_whole_groups_at_every_size(num_experts: int) -> None:
    mask = choose(V3, view(np.random.default_rng(0).integers(0, 9, V3.size)), num_experts, PEER)
    assert mask.sum() == num_experts
    assert V3.by_group(mask).all(axis=2).sum() >= num_experts // 32 - 1


def test_groups_of_a_node_whose_peers_are_near_lie_in_as_many_layers_as_there_are() -> None:
    assert len(SHAPE.holding(choose(SHAPE, empty(), 12, PEER, around=NEAR))) == 3
    mask = choose(V3, view(V3.zeros()), 590, PEER, around=NEAR)
    groups = V3.by_group(mask).all(axis=2)
    assert groups.sum() == 18 == len(V3.holding(mask))
    assert mask.sum() == 590


def test_whatever_lies_where_rarity_comes_first() -> None:
    counts = np.full(SHAPE.size, 2.0)
    counts[1, 4:12] = 0
    assert SHAPE.holding(choose(SHAPE, view(counts), 8, PEER, around=NEAR)) == {2: tuple(range(4, 12))}


@given(st.integers(0, 60), st.sampled_from(["", "room-1"]))
def test_near_peers_or_not_a_node_takes_its_budget(budget: int, zone: str) -> None:
    chosen = choose(SHAPE, empty(), budget, PEER, around=Around(Layout.MANY_LAYERS, zone))
    assert chosen.sum() == min(budget, 48)


def test_fifty_desktops_hold_every_group_equally_often_and_share_a_layer_among_many() -> None:
    counts, layers = V3.zeros(), np.zeros(58, np.int64)
    for number in range(50):
        mask = choose(V3, view(counts), 592, PeerId(f"desktop {number}"), around=NEAR)
        counts += mask
        layers += mask.any(axis=1)
    assert counts.min() >= 1
    assert counts.max() <= 3
    assert layers.min() >= 12, "machines that read one layer's experts at the same time"


def test_nodes_of_a_zone_that_cannot_hold_everything_hold_whole_layers() -> None:
    counts = V3.zeros()
    for number in range(9):
        counts += choose(V3, view(counts), 592, PeerId(f"node {number}"), around=Around(Layout.MANY_LAYERS, "room-1"))
    assert (counts.min(axis=1) > 0).sum() >= 18
    assert (counts.max(axis=1) == 0).sum() >= 30


def test_of_what_is_equally_rare_a_node_takes_what_its_zone_lacks() -> None:
    once, near = np.full(SHAPE.size, 1.0, np.float32), SHAPE.zeros()
    near[:2] = 1
    swarm = SwarmView(once, near, np.ones_like(once))
    for layout in Layout:
        assert set(SHAPE.holding(choose(SHAPE, swarm, 16, PEER, around=Around(layout)))) == {3}


def test_a_layer_without_groups_is_cut_for_nodes_that_spread() -> None:
    flat = Shape((LayerId(1), LayerId(2)), 128, 128)
    held = flat.holding(choose(flat, view(flat.zeros()), 64, PEER, around=NEAR))
    assert {layer: len(experts) for layer, experts in held.items()} == {1: 32, 2: 32}
    assert len(flat.holding(choose(flat, view(flat.zeros()), 128, PEER))) == 1
