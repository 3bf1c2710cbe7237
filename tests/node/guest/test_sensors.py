"""What the machine says of itself, and None where it says nothing."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from shoal.node.guest.sensors import (
    METERED_LOOK_S,
    MachineSensors,
    Temperature,
    hottest,
    idle_seconds,
    is_metered,
    power_watts,
    run_program,
)
from shoal.node.settings import GuestSettings

NOW_S = 1_795_348_800.0


def says(text: str | None):
    def run(command: Sequence[str]) -> str | None:
        return text

    return run


@pytest.mark.parametrize(
    ("text", "idle_s"),
    [
        (f"IdleHint=yes\nIdleSinceHint={int((NOW_S - 400) * 1e6)}\n", 400.0),
        ("IdleHint=no\nIdleSinceHint=0\n", 0.0),
        (f"IdleHint=yes\nIdleSinceHint={int((NOW_S + 5) * 1e6)}\n", 0.0),
        ("", None),
        (None, None),
        ("Failed to connect to bus\n", None),
    ],
    ids=["idle", "in use", "clock skew", "empty", "no loginctl", "no bus"],
)
def test_logind_says_since_when_nobody_has_touched_the_machine(text: str | None, idle_s: float | None) -> None:
    assert idle_seconds(NOW_S, says(text), "linux") == idle_s


def test_macos_says_nanoseconds_since_the_last_input() -> None:
    assert idle_seconds(NOW_S, says('    |   "HIDIdleTime" = 4500000000\n'), "darwin") == 4.5
    assert idle_seconds(NOW_S, says(None), "darwin") is None


def test_an_unknown_platform_is_unknown() -> None:
    assert idle_seconds(NOW_S, says("IdleHint=yes"), "plan9") is None


def test_the_hottest_processor_counts_and_a_disk_does_not() -> None:
    found = {
        "coretemp": [Temperature("Core 0", 61.0), Temperature("Core 1", 64.5)],
        "nvme": [Temperature("Composite", 85.0)],
    }  # fmt: skip
    assert hottest(found) == 64.5
    assert hottest({"nvme": found["nvme"]}) is None


def test_power_sensors_add_up(tmp_path: Path) -> None:
    for number, (kind, microwatts) in enumerate([("average", "35000000"), ("input", "12500000"), ("input", "broken")]):
        device = tmp_path / f"hwmon{number}"
        device.mkdir()
        (device / f"power1_{kind}").write_text(microwatts)
    assert power_watts(tmp_path) == 47.5
    assert power_watts(tmp_path / "none") is None


def test_a_program_that_is_not_there_or_fails_says_nothing() -> None:
    assert run_program(["/no/such/program"]) is None
    assert run_program(["false"]) is None
    assert run_program(["echo", "hello"]) == "hello\n"


@pytest.mark.parametrize(
    ("text", "metered"),
    [("u 1\n", True), ("u 3\n", True), ("u 2\n", False), ("u 4\n", False), ("u 0\n", None), ("u 9\n", None),
     ("", None), (None, None)],
)  # fmt: skip
def test_network_manager_says_whether_the_line_is_metered(text: str | None, metered: bool | None) -> None:
    assert is_metered(says(text)) is metered


def test_this_machine_can_be_looked_at() -> None:
    everything = GuestSettings(idle_only=True, pause_when=("*",), max_other_load=0.5)
    seen = MachineSensors(everything)(NOW_S, 7)
    assert seen.month_bytes == 7
    assert seen.program


def test_only_what_the_owner_asked_for_is_looked_at_and_the_line_once_a_minute() -> None:
    asked: list[str] = []

    def run(command: Sequence[str]) -> str | None:
        asked.append(command[0])
        return "u 1" if command[0] == "busctl" else None

    look = MachineSensors(GuestSettings(), run)
    assert [look(NOW_S + passed_s, 0).is_metered for passed_s in (0, 5, METERED_LOOK_S)] == [True] * 3
    assert asked == ["busctl", "busctl"]
    quiet = MachineSensors(GuestSettings(on_metered=True), run)(NOW_S, 0)
    assert (quiet.is_metered, quiet.program, quiet.other_load, quiet.idle_s) == (None, None, None, None)
    assert asked == ["busctl", "busctl"]
