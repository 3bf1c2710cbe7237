"""May this node work now? The owner's settings and what the sensors say, as a pure function.

One reason is given, the strongest. Knows no clocks and no hardware: `sensors.py` reads those.
"""

from dataclasses import dataclass

from shoal.node.guest.schedule import Schedule, month_start_after
from shoal.node.settings import GuestSettings
from shoal.protocol.control import PauseReason

COOL_DOWN_C = 5.0
"""A node that got too hot waits until it is this much cooler: else it would stop and start every few seconds."""

POWER_DOWN = 0.9
"""The same for power: it works again below this share of the limit."""


LOAD_DOWN = 0.8
"""The same for others' load, which jumps more."""


@dataclass(frozen=True, slots=True)
class Sensors:
    """One look at the machine. None: it can not be known here."""

    now_s: float
    """Unix time."""
    idle_s: float | None = None
    """Since the last key, touch or mouse movement."""
    is_on_battery: bool | None = None
    temperature_c: float | None = None
    """The hottest processor."""
    power_w: float | None = None
    is_metered: bool | None = None
    """Whether the connection to the internet is paid by the byte."""
    program: str | None = None
    """A program that the owner gives way to and that runs now; None too if there is none."""
    other_load: float | None = None
    """The share of all processors that other programs keep busy."""
    month_bytes: int = 0
    """Both directions, this month."""


@dataclass(frozen=True, slots=True)
class UserPause:
    """The owner said pause; None: until resume."""

    until_s: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` None: work. `until_s`: when that changes by itself, if that is known."""

    reason: PauseReason | None = None
    until_s: float | None = None


def decide(
    settings: GuestSettings,
    schedule: Schedule,
    sensors: Sensors,
    pause: UserPause | None,
    before: PauseReason | None = None,
) -> Verdict:
    """`before`: the reason of the verdict before this one."""
    now_s = sensors.now_s
    if pause is not None and (pause.until_s is None or now_s < pause.until_s):
        return Verdict(PauseReason.USER, pause.until_s)
    if settings.monthly_bytes is not None and sensors.month_bytes >= settings.monthly_bytes:
        return Verdict(PauseReason.MONTHLY_CAP, month_start_after(now_s, schedule.zone))
    if _is_too_hot(settings, sensors, before):
        return Verdict(PauseReason.TEMPERATURE)
    if _takes_too_much(settings, sensors, before):
        return Verdict(PauseReason.POWER)
    if sensors.is_on_battery and not settings.on_battery:
        return Verdict(PauseReason.BATTERY)
    if sensors.is_metered and not settings.on_metered:
        return Verdict(PauseReason.METERED)
    if not schedule.is_open(now_s):
        return Verdict(PauseReason.SCHEDULE, schedule.next_change_s(now_s))
    if sensors.program is not None:
        return Verdict(PauseReason.PROGRAM)
    if _is_busy_elsewhere(settings, sensors, before):
        return Verdict(PauseReason.LOAD)
    return _by_input(settings, sensors)


def _is_too_hot(settings: GuestSettings, sensors: Sensors, before: PauseReason | None) -> bool:
    if settings.max_temperature_c is None or sensors.temperature_c is None:
        return False
    margin = COOL_DOWN_C if before is PauseReason.TEMPERATURE else 0.0
    return sensors.temperature_c >= settings.max_temperature_c - margin


def _takes_too_much(settings: GuestSettings, sensors: Sensors, before: PauseReason | None) -> bool:
    if settings.max_power_w is None or sensors.power_w is None:
        return False
    share = POWER_DOWN if before is PauseReason.POWER else 1.0
    return sensors.power_w >= settings.max_power_w * share


def _is_busy_elsewhere(settings: GuestSettings, sensors: Sensors, before: PauseReason | None) -> bool:
    if settings.max_other_load is None or sensors.other_load is None:
        return False
    share = LOAD_DOWN if before is PauseReason.LOAD else 1.0
    return sensors.other_load > settings.max_other_load * share


def _by_input(settings: GuestSettings, sensors: Sensors) -> Verdict:
    if not settings.idle_only:
        return Verdict()
    if sensors.idle_s is None:  # a guest that can not see its host does not dance
        return Verdict(PauseReason.INPUT_UNKNOWN)
    left_s = settings.idle_after_s - sensors.idle_s
    return Verdict(PauseReason.INPUT, sensors.now_s + left_s) if left_s > 0 else Verdict()
