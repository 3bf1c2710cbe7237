"""When a guest works: every rule by itself, their order, and no flapping."""

from dataclasses import replace

import pytest

from shoal.node.guest.decision import Sensors, UserPause, Verdict, decide
from shoal.node.guest.schedule import parse_schedule
from shoal.node.settings import GuestSettings
from shoal.protocol.control import PauseReason

NOON = 1_795_348_800.0  # 2026-11-22 12:00 UTC
QUIET = Sensors(NOON, idle_s=10_000.0, is_on_battery=False, temperature_c=50.0, power_w=80.0, month_bytes=0)
ALWAYS = parse_schedule("", "UTC")
STRICT = GuestSettings(
    idle_only=True, idle_after_s=300, max_temperature_c=80.0, max_power_w=200.0, monthly_bytes=10**9,
    max_other_load=0.5,
)  # fmt: skip


def verdict(sensors: Sensors, settings: GuestSettings = STRICT, pause: UserPause | None = None) -> Verdict:
    return decide(settings, ALWAYS, sensors, pause)


def test_a_quiet_machine_works() -> None:
    assert verdict(QUIET) == Verdict()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"idle_s": 299.0}, PauseReason.INPUT),
        ({"idle_s": None}, PauseReason.INPUT_UNKNOWN),
        ({"is_on_battery": True}, PauseReason.BATTERY),
        ({"temperature_c": 80.0}, PauseReason.TEMPERATURE),
        ({"power_w": 200.0}, PauseReason.POWER),
        ({"month_bytes": 10**9}, PauseReason.MONTHLY_CAP),
        ({"is_metered": True}, PauseReason.METERED),
        ({"program": "game.exe"}, PauseReason.PROGRAM),
        ({"other_load": 0.51}, PauseReason.LOAD),
        ({"is_metered": None, "other_load": None}, None),
        ({"is_metered": False, "other_load": 0.5}, None),
        ({"idle_s": 300.0}, None),
        ({"is_on_battery": None}, None),
        ({"temperature_c": None, "power_w": None}, None),
        ({"temperature_c": 79.9, "power_w": 199.9, "month_bytes": 10**9 - 1}, None),
    ],
    ids=str,
)
def test_each_rule_decides(change: dict[str, float | bool | None], reason: PauseReason | None) -> None:
    assert verdict(replace(QUIET, **change)).reason is reason  # type: ignore[arg-type]


def test_the_defaults_only_spare_the_battery_and_a_hot_machine() -> None:
    defaults = GuestSettings()
    assert verdict(Sensors(NOON), defaults) == Verdict()
    assert verdict(Sensors(NOON, idle_s=0.0, month_bytes=10**15, power_w=1000.0), defaults) == Verdict()
    assert verdict(Sensors(NOON, is_on_battery=True), defaults).reason is PauseReason.BATTERY
    assert verdict(Sensors(NOON, is_on_battery=True), replace(defaults, on_battery=True)) == Verdict()
    assert verdict(Sensors(NOON, temperature_c=95.0), defaults).reason is PauseReason.TEMPERATURE


def test_outside_its_hours_it_waits_and_says_until_when() -> None:
    night = parse_schedule("22:00-06:00", "UTC")
    assert decide(STRICT, night, QUIET, None) == Verdict(PauseReason.SCHEDULE, NOON + 10 * 3600)
    assert decide(STRICT, night, replace(QUIET, now_s=NOON + 10 * 3600), None) == Verdict()


def test_a_pause_of_two_hours_ends_after_two_hours() -> None:
    pause = UserPause(NOON + 7200)
    assert verdict(QUIET, pause=pause) == Verdict(PauseReason.USER, NOON + 7200)
    assert verdict(replace(QUIET, now_s=NOON + 7199.9), pause=pause).reason is PauseReason.USER
    assert verdict(replace(QUIET, now_s=NOON + 7200), pause=pause) == Verdict()
    assert verdict(replace(QUIET, now_s=NOON + 10**9), pause=UserPause()).reason is PauseReason.USER


def test_the_month_that_is_used_up_ends_with_the_month() -> None:
    said = verdict(replace(QUIET, month_bytes=2 * 10**9))
    assert said.until_s == 1_796_083_200.0  # 2026-12-01 00:00 UTC


def test_somebody_at_the_keyboard_gets_five_minutes_after_the_last_key() -> None:
    assert verdict(replace(QUIET, idle_s=60.0)) == Verdict(PauseReason.INPUT, NOON + 240)


@pytest.mark.parametrize(
    ("reason", "field", "values"),
    [
        (PauseReason.TEMPERATURE, "temperature_c", [(79.0, False), (80.0, True), (76.0, True), (74.9, False)]),
        (PauseReason.LOAD, "other_load", [(0.5, False), (0.6, True), (0.45, True), (0.39, False)]),
        (PauseReason.POWER, "power_w", [(199.0, False), (200.0, True), (181.0, True), (179.0, False)]),
    ],
)
def test_what_was_too_much_must_fall_clearly_before_it_works_again(
    reason: PauseReason, field: str, values: list[tuple[float, bool]]
) -> None:
    before: PauseReason | None = None
    for value, is_paused in values:
        said = decide(STRICT, ALWAYS, replace(QUIET, **{field: value}), None, before)  # type: ignore[arg-type]
        assert said.reason == (reason if is_paused else None)
        before = said.reason
