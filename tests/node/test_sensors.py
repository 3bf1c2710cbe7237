"""What the machine says of itself, and None where it says nothing."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from shoal.node.sensors import Temperature, hottest, idle_seconds, power_watts, read_sensors, run_program

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


def test_this_machine_can_be_looked_at() -> None:
    assert read_sensors(NOW_S, 7).month_bytes == 7
