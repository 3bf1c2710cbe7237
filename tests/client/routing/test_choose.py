"""The choice of holders covers every expert once, with few holders, the same way each time."""

from hypothesis import given
from hypothesis import strategies as st

from shoal.client.routing.choose import Plan, choose, choose_disks, choose_in_tiers, with_disks
from shoal.protocol.ids import ExpertId, PeerId

experts = st.frozensets(st.integers(0, 31).map(ExpertId), max_size=16)
holders = st.dictionaries(st.text("abcdef", min_size=1, max_size=3).map(PeerId), experts, max_size=8)


@given(needed=experts, held=holders)
def test_every_expert_is_computed_once_or_named_as_uncovered(
    needed: frozenset[ExpertId], held: dict[PeerId, frozenset[ExpertId]]
) -> None:
    plan = choose(needed, held, dict.fromkeys(held, 1.0))
    shared = [expert for share in plan.shares.values() for expert in share]
    assert sorted([*shared, *plan.uncovered]) == sorted(needed)
    assert all(set(share) <= held[peer] and share for peer, share in plan.shares.items())
    assert not any(expert in held[peer] for expert in plan.uncovered for peer in held)


@given(needed=experts, held=holders)
def test_the_order_of_arrival_of_records_does_not_change_the_plan(
    needed: frozenset[ExpertId], held: dict[PeerId, frozenset[ExpertId]]
) -> None:
    cost = dict.fromkeys(held, 1.0)
    assert choose(needed, held, cost) == choose(needed, dict(reversed(held.items())), cost)


def test_one_holder_of_all_is_preferred_to_two_of_halves() -> None:
    held = {
        PeerId("a"): frozenset({ExpertId(1)}),
        PeerId("b"): frozenset({ExpertId(2)}),
        PeerId("c"): frozenset({ExpertId(1), ExpertId(2)}),
    }
    plan = choose([ExpertId(1), ExpertId(2)], held, {PeerId("a"): 0.1, PeerId("b"): 0.1, PeerId("c"): 9.0})
    assert plan.shares == {PeerId("c"): (1, 2)}


def test_among_equal_replicas_the_cheaper_answers() -> None:
    held = {PeerId(name): frozenset({ExpertId(1)}) for name in "ab"}
    assert list(choose([ExpertId(1)], held, {PeerId("a"): 2.0, PeerId("b"): 1.0}).shares) == ["b"]


@given(needed=experts, tiers=st.lists(holders, max_size=3))
def test_a_lower_tier_computes_only_what_no_higher_one_holds(
    needed: frozenset[ExpertId], tiers: list[dict[PeerId, frozenset[ExpertId]]]
) -> None:
    named = [{PeerId(f"{place}{peer}"): held for peer, held in tier.items()} for place, tier in enumerate(tiers)]
    plan = choose_in_tiers(needed, named, {peer: 1.0 for tier in named for peer in tier})
    shared = [expert for share in plan.shares.values() for expert in share]
    assert sorted([*shared, *plan.uncovered]) == sorted(needed)
    for peer, share in plan.shares.items():
        better = named[: int(peer[0])]
        assert not any(expert in held for expert in share for tier in better for held in tier.values())


@given(needed=experts, others=holders, disks=holders, data=st.data())
def test_a_disk_gets_only_what_is_hoped_for_of_nobody_and_nothing_is_lost(
    needed: frozenset[ExpertId],
    others: dict[PeerId, frozenset[ExpertId]],
    disks: dict[PeerId, frozenset[ExpertId]],
    data: st.DataObject,
) -> None:
    """A peer may have some experts in memory and others on its disk."""
    on_disk = {peer: held - others.get(peer, frozenset()) for peer, held in disks.items()}
    cost = dict.fromkeys((*others, *on_disk), 1.0)
    plan = choose(needed, others, cost)
    doubtful = data.draw(st.sets(st.sampled_from(sorted(plan.shares))) if plan.shares else st.just(set[PeerId]()))
    hoped_for = data.draw(experts)
    mixed = with_disks(plan, doubtful, hoped_for, choose_disks(needed, [on_disk], cost, cost))
    asked = [expert for shares in (mixed.shares, mixed.cold) for share in shares.values() for expert in share]
    assert sorted([*asked, *mixed.uncovered]) == sorted(needed)
    assert mixed.peers == {*mixed.shares, *mixed.cold}
    for peer, share in mixed.cold.items():
        assert share
        assert on_disk[peer].issuperset(share)
        assert hoped_for.isdisjoint(share)
        assert all(expert in plan.uncovered or expert in _of(plan, doubtful) for expert in share)
    for peer, share in mixed.shares.items():
        assert share
        assert set(share) <= set(plan.shares[peer])
    offered = frozenset[ExpertId]().union(*on_disk.values())
    assert frozenset(mixed.uncovered) == frozenset(plan.uncovered) - (offered - hoped_for)


@given(needed=experts, tiers=st.lists(holders, max_size=3))
def test_every_expert_is_read_once_where_the_first_tier_that_has_it_has_it(
    needed: frozenset[ExpertId], tiers: list[dict[PeerId, frozenset[ExpertId]]]
) -> None:
    named = [{PeerId(f"{place}{peer}"): held for peer, held in tier.items()} for place, tier in enumerate(tiers)]
    same = {peer: 1.0 for tier in named for peer in tier}
    plan = choose_disks(needed, named, same, same)
    shared = [expert for share in plan.shares.values() for expert in share]
    assert sorted([*shared, *plan.uncovered]) == sorted(needed)
    for peer, share in plan.shares.items():
        assert set(share) <= named[int(peer[0])][peer]
        assert not any(expert in held for expert in share for tier in named[: int(peer[0])] for held in tier.values())
    assert not any(expert in held for expert in plan.uncovered for tier in named for held in tier.values())


def test_of_several_disks_the_quicker_ones_read_and_side_by_side() -> None:
    everywhere = {PeerId(name): frozenset(map(ExpertId, range(4))) for name in ("ssd", "ssd2", "usb")}
    cost, read = dict.fromkeys(everywhere, 0.05), {PeerId("ssd"): 0.02, PeerId("ssd2"): 0.02, PeerId("usb"): 5.0}
    shares = choose_disks(map(ExpertId, range(4)), [everywhere], cost, read).shares
    assert {peer: len(share) for peer, share in shares.items()} == {"ssd": 2, "ssd2": 2}


def test_where_nobody_says_what_reading_takes_one_disk_reads_all() -> None:
    everywhere = {PeerId(name): frozenset(map(ExpertId, range(4))) for name in "ab"}
    same = dict.fromkeys(everywhere, 0.0)
    assert choose_disks(map(ExpertId, range(4)), [everywhere], same, same).shares == {PeerId("a"): (0, 1, 2, 3)}


def _of(plan: Plan, peers: set[PeerId]) -> set[ExpertId]:
    return {expert for peer in peers for expert in plan.shares[peer]}


def test_what_nobody_has_is_told_in_order_of_the_experts():
    assert choose([ExpertId(200), ExpertId(9), ExpertId(3)], {}, {}).uncovered == (3, 9, 200)
