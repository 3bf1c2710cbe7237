"""Placement at the scale of a swarm: better than chance, mended after an exodus, the same for the same seed."""

from dataclasses import replace

from shoal.simulations.placement import PlacementSettings, Policy, simulate_placement
from shoal.simulations.placement_table import table_lines

LEAN = PlacementSettings(200, 4 * 10**9, hours=6)
EXODUS = PlacementSettings(200, 5 * 10**9, hours=6, exodus=0.3)


def test_the_rarest_first_covers_what_chance_leaves_open() -> None:
    chance, ours = (simulate_placement(LEAN, policy) for policy in (Policy.RANDOM, Policy.JOIN))
    assert chance.coverage_mean < 0.97
    assert ours.coverage_mean > 0.999
    assert ours.holders_per_layer < chance.holders_per_layer


def test_take_over_mends_what_an_exodus_left() -> None:
    without, ours = (simulate_placement(EXODUS, policy) for policy in (Policy.JOIN, Policy.HEAL))
    assert ours.rare_share < without.rare_share / 2
    assert ours.min_replicas >= 2
    assert ours.moves_per_h > 0


def test_a_swarm_with_plenty_moves_nothing() -> None:
    assert simulate_placement(PlacementSettings(300, 16 * 10**9, hours=3), Policy.HEAL).moves_per_h == 0


def test_ten_thousand_nodes_find_their_places_and_popular_experts_get_more_of_them() -> None:
    result = simulate_placement(PlacementSettings(10_000, 10**9, hours=0.05), Policy.HEAL)
    assert result.coverage_least == 1
    assert result.min_replicas >= 10
    assert 1.2 < result.popular_ratio < 2


def test_the_same_seed_is_the_same_swarm() -> None:
    first, again, other = (simulate_placement(replace(LEAN, hours=2, seed=seed), Policy.HEAL) for seed in (1, 1, 2))
    assert replace(first, decision_ms=0.0) == replace(again, decision_ms=0.0) != replace(other, decision_ms=0.0)


def test_the_table_has_a_line_for_every_policy() -> None:
    short = replace(LEAN, num_nodes=20, hours=0.1)
    lines = list(table_lines([(short, simulate_placement(short, policy)) for policy in Policy]))
    assert [line[:14].strip() for line in lines[2:]] == ["random", "on joining", "and take-over"]
