"""How much this node has transferred this month, on disk, and how fast lately.

Crash-safe by reservation: the file says more than was used, so that a node that is killed has counted too much and not
too little, unless it is killed right after its traffic has grown fourfold within a second. Knows no network: totals of
bytes come in.
"""

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shoal.node.guest.durable_file import replace_file
from shoal.protocol.net.channel import Traffic

RESERVE_BYTES = 16 * 1024 * 1024
"""At least so many bytes for one write to disk: a crash costs 0.1 % of a 16 GB cap."""

RESERVE_UPDATES = 4
"""On fast links: what passed between the last two updates, so many times."""

RATE_WINDOW_S = 10.0


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes per second over the last ten seconds."""

    up: float = 0.0
    down: float = 0.0


class TransferMeter:
    """Counts the bytes of a Traffic into the current month's sum. `update` it often.

    month: the current month, e.g. `2026-11`. A file that can not be read counts as a month that is spent: an owner's
    cap is not to be passed because a disk failed; removing the file resets it.
    """

    def __init__(self, path: Path, traffic: Traffic, month: Callable[[], str], cap_bytes: int | None) -> None:
        self._path = path
        self._traffic = traffic
        self._now_month = month
        self._month, self._month_bytes = month(), 0
        self._seen_bytes = 0
        self._reserved_bytes = 0
        self._samples: deque[tuple[float, int, int]] = deque()
        self._read(cap_bytes)

    @property
    def month(self) -> str:
        return self._month

    @property
    def month_bytes(self) -> int:
        return self._month_bytes

    def update(self, now: float) -> None:
        """Count what has passed since the last call. now: seconds, monotonic.

        Raises:
            OSError: the file can not be written.
        """
        total = self._traffic.bytes_sent + self._traffic.bytes_received
        if self._now_month() != self._month:
            self._month, self._month_bytes, self._reserved_bytes = self._now_month(), 0, 0
        passed_bytes = total - self._seen_bytes
        self._month_bytes += passed_bytes
        self._seen_bytes = total
        reserve_bytes = max(RESERVE_BYTES, RESERVE_UPDATES * passed_bytes)
        if passed_bytes and self._month_bytes > self._reserved_bytes - reserve_bytes // 2:
            self._write(self._month_bytes + reserve_bytes)
        self._samples.append((now, self._traffic.bytes_sent, self._traffic.bytes_received))
        while len(self._samples) > 2 and self._samples[1][0] <= now - RATE_WINDOW_S:
            self._samples.popleft()

    def rates(self) -> Rates:
        """Over the last ten seconds of updates."""
        if len(self._samples) < 2 or (elapsed := self._samples[-1][0] - self._samples[0][0]) <= 0:
            return Rates()
        first, last = self._samples[0], self._samples[-1]
        return Rates((last[1] - first[1]) / elapsed, (last[2] - first[2]) / elapsed)

    def close(self) -> None:
        """Write the exact sum: nothing was lost."""
        self.update(self._samples[-1][0] if self._samples else 0.0)
        if self._month_bytes != self._reserved_bytes:
            self._write(self._month_bytes)

    def _read(self, cap_bytes: int | None) -> None:
        if not self._path.exists():
            return
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            month, month_bytes = str(stored["month"]), int(stored["bytes"])
        except (ValueError, KeyError, TypeError, OSError):
            month, month_bytes = self._month, cap_bytes or 0
        if month == self._month:
            self._month_bytes = max(0, month_bytes)

    def _write(self, reserved_bytes: int) -> None:
        replace_file(self._path, json.dumps({"month": self._month, "bytes": reserved_bytes}))
        self._reserved_bytes = reserved_bytes
