"""Hours of work: by the local clock, over midnight, over weekends, and when clocks are changed."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.node.guest.schedule import month_of, month_start_after, parse_schedule
from shoal.protocol.errors import InvalidRequest

BERLIN = "Europe/Berlin"
ZONES = [BERLIN, "America/Sao_Paulo", "Africa/Nairobi", "Australia/Lord_Howe", "Asia/Kathmandu", "UTC"]


def at(words: str, zone: str = BERLIN, fold: int = 0) -> float:
    return datetime.fromisoformat(words).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


@pytest.mark.parametrize(
    ("schedule", "moment", "is_open"),
    [
        ("", "2026-11-22 12:00", True),
        ("22:00-06:00", "2026-11-22 21:59", False),
        ("22:00-06:00", "2026-11-22 22:00", True),
        ("22:00-06:00", "2026-11-23 05:59", True),
        ("22:00-06:00", "2026-11-23 06:00", False),
        ("mon-fri 18:00-08:00", "2026-11-21 07:00", True),  # Saturday: Friday's window
        ("mon-fri 18:00-08:00", "2026-11-22 07:00", False),  # Sunday: Saturday has none
        ("mon-fri 18:00-08:00, sat-sun 00:00-24:00", "2026-11-22 07:00", True),
        ("sun 00:00-24:00", "2026-11-23 00:00", False),
        ("fri-mon 09:00-10:00", "2026-11-22 09:30", True),
        ("fri-mon 09:00-10:00", "2026-11-24 09:30", False),
    ],
)
def test_hours_are_those_of_the_local_clock(schedule: str, moment: str, is_open: bool) -> None:
    assert parse_schedule(schedule, BERLIN).is_open(at(moment)) is is_open


def test_the_night_of_summer_time_is_an_hour_shorter_and_that_of_winter_time_an_hour_longer() -> None:
    night = parse_schedule("22:00-06:00", BERLIN)
    for evening, hours in (("2026-03-28", 7), ("2026-10-24", 9), ("2026-11-22", 8)):
        opens = at(f"{evening} 22:00")
        closes = night.next_change_s(opens)
        assert closes is not None
        assert (closes - opens) / 3600 == hours


def test_a_window_in_the_hour_that_never_comes_is_skipped_and_one_in_the_repeated_hour_counts_twice() -> None:
    window = parse_schedule("02:15-02:45", BERLIN)

    def minutes(day: str) -> int:
        start = at(f"{day} 00:00")
        return sum(window.is_open(start + 60 * n) for n in range(6 * 60))

    assert (minutes("2026-03-29"), minutes("2026-10-25"), minutes("2026-11-22")) == (0, 60, 30)


@given(
    zone=st.sampled_from(ZONES),
    now=st.integers(1_770_000_000, 1_810_000_000),
    windows=st.lists(
        st.tuples(
            st.sampled_from(["", "mon ", "sat-sun ", "mon-fri ", "sun "]), st.integers(0, 1439), st.integers(1, 1440)
        ).filter(lambda window: window[1] != window[2]),
        min_size=1, max_size=3,
    ),
)  # fmt: skip
def test_the_next_change_is_a_change_and_the_first_one(
    zone: str, now: int, windows: list[tuple[str, int, int]]
) -> None:
    words = ", ".join(f"{d}{a // 60:02}:{a % 60:02}-{b // 60:02}:{b % 60:02}" for d, a, b in windows)
    schedule = parse_schedule(words, zone)
    was_open, change = schedule.is_open(now), schedule.next_change_s(now)
    horizon = change if change is not None else now + 8 * 86_400
    assert all(schedule.is_open(moment) is was_open for moment in range(now, int(horizon), 613))
    if change is not None:
        assert schedule.is_open(change) is not was_open
        assert schedule.is_open(change - 1) is was_open


@pytest.mark.parametrize(
    "words", ["22-06", "25:00-06:00", "22:60-06:00", "22:00-22:00", "foo 22:00-06:00", "22:00-06:00,", "24:00-06:00"]
)
def test_what_is_no_time_is_refused(words: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_schedule(words)


def test_a_time_zone_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="time zone"):
        parse_schedule("", "Mars/Olympus")


def test_months_are_local() -> None:
    new_year = at("2026-12-31 23:30", "Africa/Nairobi")
    assert month_of(new_year, ZoneInfo("Africa/Nairobi")) == "2026-12"
    assert month_of(new_year, ZoneInfo("Asia/Kathmandu")) == "2027-01"
    assert month_start_after(new_year, ZoneInfo("Africa/Nairobi")) == at("2027-01-01 00:00", "Africa/Nairobi")
