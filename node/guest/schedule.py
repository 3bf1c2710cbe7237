"""When a volunteer lets the node work: windows of the local clock, such as `22:00-06:00` or `sat-sun 00:00-24:00`.

Pure: the moment and the time zone are arguments. Windows are of wall-clock time: where a clock is put back, the
repeated hour counts twice; where it is put forward, the missing hour never comes.
"""

import re
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from shoal.protocol.errors import InvalidRequest

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTES_A_DAY = 24 * 60
LOOK_AHEAD_DAYS = 9
"""A window of one weekday opens again within eight days."""

_WINDOW = re.compile(r"(?:([a-z]{3})(?:-([a-z]{3}))?\s+)?(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})")


@dataclass(frozen=True, slots=True)
class Window:
    """`start` to `end` in minutes of the day; an `end` not after `start` is of the next day. `days`: of its start."""

    days: frozenset[int]
    start: int
    end: int

    def contains(self, weekday: int, minute: int) -> bool:
        """Whether this minute of this weekday (0: Monday) lies inside."""
        if self.start < self.end:
            return weekday in self.days and self.start <= minute < self.end
        yesterday = (weekday - 1) % 7
        return (weekday in self.days and minute >= self.start) or (yesterday in self.days and minute < self.end)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Windows in a time zone; None: the system's. No window: always."""

    windows: tuple[Window, ...] = ()
    zone: tzinfo | None = None

    def is_open(self, now_s: float) -> bool:
        """Whether the node may work at this Unix time."""
        local = datetime.fromtimestamp(now_s, self.zone)
        minute = local.hour * 60 + local.minute
        return not self.windows or any(window.contains(local.weekday(), minute) for window in self.windows)

    def next_change_s(self, now_s: float) -> float | None:
        """The Unix time at which `is_open` changes next; None: never."""
        was_open = self.is_open(now_s)
        later = (moment for moment in self._boundaries(now_s) if moment > now_s)
        return next((moment for moment in sorted(later) if self.is_open(moment) != was_open), None)

    def _boundaries(self, now_s: float) -> set[float]:
        """Moments at which `is_open` may change."""
        today = datetime.fromtimestamp(now_s, self.zone).date()
        days = [today + timedelta(days=n) for n in range(-1, LOOK_AHEAD_DAYS)]
        minutes = {minute for window in self.windows for minute in (window.start, window.end)}
        minutes |= set(range(0, MINUTES_A_DAY, 60))  # clocks are put back or forward on the hour
        return {_moment(day, minute, self.zone, fold) for day in days for minute in minutes for fold in (0, 1)}


def parse_schedule(words: str, time_zone: str = "") -> Schedule:
    """Read `[day[-day] ]HH:MM-HH:MM`, separated by commas; empty: always. `time_zone`: an IANA name, or empty.

    Raises:
        InvalidRequest: not of that form, or no such time zone.
    """
    windows = tuple(_parse_window(part.strip().lower()) for part in words.split(",")) if words.strip() else ()
    return Schedule(windows, _zone(time_zone))


def month_start_after(now_s: float, zone: tzinfo | None = None) -> float:
    """The Unix time at which the next month begins, locally."""
    local = datetime.fromtimestamp(now_s, zone)
    first = date(local.year + local.month // 12, local.month % 12 + 1, 1)
    return _moment(first, 0, zone, 0)


def month_of(now_s: float, zone: tzinfo | None = None) -> str:
    """The local month, as `2026-11`."""
    return datetime.fromtimestamp(now_s, zone).strftime("%Y-%m")


def _parse_window(words: str) -> Window:
    match = _WINDOW.fullmatch(words)
    if match is None:
        raise InvalidRequest(f"{words!r} is no time window; write e.g. 22:00-06:00 or sat-sun 00:00-24:00")
    start, end = _minute(match[3], match[4], words), _minute(match[5], match[6], words)
    if start in (MINUTES_A_DAY, end):
        raise InvalidRequest(f"the window {words!r} is empty")
    return Window(_days(match[1], match[2], words), start, end)


def _minute(hours: str, minutes: str, words: str) -> int:
    minute = int(hours) * 60 + int(minutes)
    if int(minutes) > 59 or minute > MINUTES_A_DAY:
        raise InvalidRequest(f"{hours}:{minutes} in {words!r} is no time of the day")
    return minute


def _days(first: str | None, last: str | None, words: str) -> frozenset[int]:
    if first is None:
        return frozenset(range(7))
    for day in (first, last or first):
        if day not in DAYS:
            raise InvalidRequest(f"{day!r} in {words!r} is no day; they are {', '.join(DAYS)}")
    start, end = DAYS.index(first), DAYS.index(last or first)
    return frozenset((start + n) % 7 for n in range((end - start) % 7 + 1))


def _zone(name: str) -> tzinfo | None:
    if not name:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidRequest(f"{name!r} is no time zone; write e.g. Europe/Berlin, or leave it out") from None


def _moment(day: date, minute: int, zone: tzinfo | None, fold: int) -> float:
    """The Unix time of a minute of a local day."""
    day, minute = day + timedelta(days=minute // MINUTES_A_DAY), minute % MINUTES_A_DAY
    return datetime.combine(day, time(minute // 60, minute % 60, fold=fold), zone).timestamp()
