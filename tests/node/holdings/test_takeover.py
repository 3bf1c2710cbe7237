"""When a node takes over: not too soon, the older first, never below the target, nothing back and forth."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shoal.node.holdings.placement import Mask, Shape, SwarmView
from shoal.node.holdings.survey import Me, survey
from shoal.node.holdings.takeover import MAX_TURNS, Means, Rarity, plan_move, spare, turn_s
from shoal.protocol.ids import ExpertId, LayerId, PeerId
from shoal.protocol.messages import WeightFormat
from shoal.protocol.records import HolderRecord

SHAPE = Shape((LayerId(1), LayerId(2)), 8, 4)
NOW_S = 1_800_000_000
ME = Me(PeerId("me"), NOW_S - 500, WeightFormat.FP8_BLOCK, "")


def counts(value: int) -> np.ndarray:
    return np.full(SHAPE.size, value, np.int32)


def nothing() -> Mask:
    return np.zeros(SHAPE.size, np.bool_)


def view(replicas: np.ndarray) -> SwarmView:
    full = replicas.astype(np.float32)
    return SwarmView(full, full, np.ones_like(full))


def record(
    peer: str, experts: range, layer: int = 1, age_s: int = 100, coming: range = range(0), room: int = 0,
    cold: range = range(0), weight_format: int = WeightFormat.FP8_BLOCK,
) -> HolderRecord:  # fmt: skip
    return HolderRecord(
        PeerId(peer), b"r" * 32, LayerId(layer), frozenset(map(ExpertId, experts)), weight_format, 3, 1, 0, 0, (), 1,
        NOW_S + 90.0, frozenset(map(ExpertId, coming)), NOW_S - age_s, room, cold=frozenset(map(ExpertId, cold)),
    )  # fmt: skip


def test_what_is_rare_is_overdue_only_after_the_wait_and_a_recovery_starts_it_anew() -> None:
    rarity, rare = Rarity(SHAPE), counts(2)
    rare[0, 3] = 1
    rarity.update(rare, 10.0)
    assert not rarity.overdue(120.0, 129.0).any()
    assert np.argwhere(rarity.overdue(120.0, 130.0)).tolist() == [[0, 3]]
    rarity.update(counts(2), 131.0)
    rarity.update(rare, 132.0)
    assert not rarity.overdue(120.0, 200.0).any()


def test_the_older_act_first_and_everybody_acts_in_the_end() -> None:
    turns = [turn_s(rank) for rank in range(MAX_TURNS + 5)]
    assert turns == sorted(turns)
    assert turns[0] < turns[1]
    assert turns[-1] == turns[MAX_TURNS]


def test_rank_is_by_room_then_age_then_name() -> None:
    found = {
        LayerId(1): [
            record("older without room", range(4), age_s=900),
            record("older", range(4), age_s=800, room=9),
            record("younger", range(4), age_s=10, room=9),
        ],
        LayerId(2): [record("older", range(4), layer=2, age_s=800, room=9)],
    }
    assert survey(SHAPE, found, ME, 5, NOW_S).rank == 1
    assert survey(SHAPE, found, ME, 0, NOW_S).rank == 3
    assert survey(SHAPE, found, ME, 5, NOW_S).num_holders == 3


def test_anchors_other_formats_and_our_own_records_are_not_counted() -> None:
    found = {
        LayerId(1): [
            record("anchor", range(0), cold=range(8)),
            record("other model", range(8), weight_format=WeightFormat.INT4_G32),
            record("me", range(8)),
            record("one", range(2)),
        ]
    }
    others = survey(SHAPE, found, ME, 0, NOW_S)
    assert others.replicas.sum() == 2
    assert others.num_holders == 1


def test_what_is_coming_counts_but_whoever_comes_after_us_yields() -> None:
    older = record("older", range(0), age_s=900, coming=range(2))
    younger = record("younger", range(0), age_s=1, coming=range(4))
    found = {LayerId(1): [older, younger]}
    assert survey(SHAPE, found, ME, 0, NOW_S).replicas[0].tolist() == [2, 2, 1, 1, 0, 0, 0, 0]
    assert survey(SHAPE, found, ME, 0, NOW_S, is_yielding=True).replicas[0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]


def test_a_move_takes_only_what_is_overdue_and_fits() -> None:
    overdue = nothing()
    overdue[1] = True
    replicas = counts(3)
    replicas[1] = 1
    move = plan_move(SHAPE, view(replicas), Means(ME.peer, nothing(), nothing(), 5), overdue)
    assert (move.take & ~overdue).sum() == 0
    assert move.num_taken == 5
    assert move.num_dropped == 0


def test_without_room_as_much_is_given_up_as_is_taken_and_it_is_what_has_most_holders() -> None:
    overdue, may_drop, replicas = nothing(), nothing(), counts(4)
    overdue[1, :2] = True
    may_drop[0] = True
    replicas[0, 6:] = 9
    move = plan_move(SHAPE, view(replicas), Means(ME.peer, may_drop, may_drop, 0), overdue)
    assert np.argwhere(move.drop).tolist() == [[0, 6], [0, 7]]
    assert (move.take == overdue).all()


def test_what_has_just_enough_holders_is_never_given_up() -> None:
    everything = ~nothing()
    for replicas in (0, 1, 2, 3):
        assert not spare(counts(replicas), counts(0), everything).any()
    assert spare(counts(4), counts(0), everything).all()


@given(st.integers(1, 12))
def test_any_number_of_nodes_that_give_up_at_the_same_moment_leave_enough(num_holders: int) -> None:
    """Each sees all holders and knows how many are younger than itself."""
    left = sum(not spare(counts(num_holders), counts(younger), ~nothing())[0, 0] for younger in range(num_holders))
    assert left == min(num_holders, 3)


def test_taking_and_giving_up_do_not_chase_each_other() -> None:
    """What was taken because it was rare is not spare right after, whoever looks."""
    replicas = counts(1)
    replicas += 1  # taken over
    assert not spare(replicas, counts(0), ~nothing()).any()
    rarity = Rarity(SHAPE)
    rarity.update(counts(3), 0.0)  # the least that is left where something was given up
    assert not rarity.overdue(0.0, 1e9).any()
