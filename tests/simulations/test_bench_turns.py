"""Turns of the benchmarks: everybody meets the same machine, and the figures survive a noisy one."""

import pytest

from shoal.simulations.bench import turns


def test_every_side_runs_the_same_calls_and_nobody_always_comes_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PAUSE_S", 0.0)
    called: list[tuple[str, int]] = []
    first, second = turns.take_turns([lambda i: called.append(("a", i)), lambda i: called.append(("b", i))], time_s=0.0)
    assert [i for side, i in called if side == "a"] == [i for side, i in called if side == "b"]
    assert [len(block) for block in first] == [turns.CALLS_PER_BLOCK - 1] * turns.MIN_ROUNDS
    assert len(first) == len(second)
    begins = [called[2 * turns.CALLS_PER_BLOCK * r][0] for r in range(turns.MIN_ROUNDS)]
    assert begins == ["a", "b", "a", "b", "a"]


def test_a_machine_that_slows_down_half_way_does_not_move_the_paired_ratio() -> None:
    slow_half = [1.0] * 4 + [7.0] * 5
    ours = [[0.5 * slow] * 3 for slow in slow_half]
    baseline = [[1.0 * slow] * 3 for slow in slow_half]
    assert turns.paired_ratio(ours, baseline) == turns.Middle(0.5, 0.0)
    baseline[8] = [1.0, 90.0, 90.0]  # and one interrupted block neither
    assert turns.paired_ratio(ours, baseline) == turns.Middle(0.5, 0.0)


def test_sides_that_did_not_run_beside_each_other_are_not_compared() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        turns.paired_ratio([[1.0], [1.0]], [[1.0]])


def test_a_middle_has_half_the_distance_of_the_quartiles() -> None:
    assert turns.middle([3.0]) == turns.Middle(3.0, 0.0)
    assert turns.middle([1.0, 2.0, 3.0, 4.0, 5.0]) == turns.Middle(3.0, 1.5)
