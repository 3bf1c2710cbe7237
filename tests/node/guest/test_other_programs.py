"""Programs that the owner gives way to, and the load of others, in which our own work has no part."""

from collections.abc import Sequence

import pytest

from shoal.node.guest.other_programs import CpuTimes, OtherLoad, cpu_times, first_match, process_names


def load_of(looks: Sequence[CpuTimes]) -> list[float | None]:
    remaining = iter(looks)
    load = OtherLoad(lambda: next(remaining))
    return [load() for _ in looks]


def test_others_load_is_what_was_busy_less_what_we_did() -> None:
    looks = [CpuTimes(100.0, 40.0, 10.0), CpuTimes(120.0, 56.0, 16.0), CpuTimes(140.0, 62.0, 22.0)]
    assert load_of(looks) == [None, pytest.approx(0.5), 0.0]


def test_a_clock_that_stands_still_leaves_the_load_as_it_was() -> None:
    looks = [CpuTimes(100.0, 40.0, 0.0), CpuTimes(110.0, 45.0, 0.0), CpuTimes(110.0, 45.0, 0.0)]
    assert load_of(looks) == [None, pytest.approx(0.5), pytest.approx(0.5)]


def test_children_that_end_take_their_time_with_them_and_the_load_stays_in_its_range() -> None:
    assert load_of([CpuTimes(100.0, 40.0, 30.0), CpuTimes(101.0, 41.0, 5.0)]) == [None, 1.0]
    assert load_of([CpuTimes(100.0, 40.0, 0.0), CpuTimes(101.0, 40.5, 2.0)]) == [None, 0.0]


@pytest.mark.parametrize(
    ("patterns", "names", "found"),
    [
        (["game.exe"], ["init", "Game.exe"], "Game.exe"),
        (["steam_app_*"], ["steam", "steam_app_620"], "steam_app_620"),
        (["steam"], ["steam_app_620"], None),
        (["a", "b?"], ["b", "bc"], "bc"),
        ([], ["init"], None),
        (["game"], [], None),
    ],
)
def test_a_program_is_known_by_its_whole_name_or_a_pattern(
    patterns: list[str], names: list[str], found: str | None
) -> None:
    assert first_match(patterns, names) == found


def test_this_machine_says_what_runs_and_how_long_it_has_worked() -> None:
    assert process_names()
    times = cpu_times()
    assert 0 < times.busy_s <= times.total_s
    assert times.own_s > 0
