"""The loop that keeps a node a guest: looks at the machine, decides, opens and closes the gate.

Sensors and clocks are injected; the decision itself is `decision.py`. A pause by the owner acts at once and not at the
next look.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from shoal.node.guest.decision import Sensors, UserPause, Verdict, decide
from shoal.node.guest.pause_file import PauseFile
from shoal.node.guest.schedule import parse_schedule
from shoal.node.guest.transfer_meter import TransferMeter
from shoal.node.log_events import NodePaused, NodeResumed, PauseNotKept, TransferNotCounted, log_event
from shoal.node.serving.gate import WorkGate
from shoal.node.settings import GuestSettings

LOOK_S = 1.0
"""Between two decisions: what a monthly cap may be passed by is what this lets through."""

SENSE_S = 5.0
"""Between two readings of the sensors: somebody who sits down has his machine back within this."""

ReadSensors = Callable[[float, int], Sensors]
"""(Unix time, bytes this month) to sensors; blocking."""


class Guest:
    """Decides for one node whether it works. clock: Unix time in seconds; kept: the pause of the run before."""

    def __init__(
        self,
        settings: GuestSettings,
        read_sensors: ReadSensors,
        meter: TransferMeter,
        kept: PauseFile,
        clock: Callable[[], float],
    ) -> None:
        """
        Raises:
            InvalidRequest: the schedule can not be read.
        """
        self._settings = settings
        self._schedule = parse_schedule(settings.schedule, settings.time_zone)
        self._read_sensors = read_sensors
        self._meter = meter
        self._clock = clock
        self._kept = kept
        self._pause = kept.read(clock())
        self._sensors: Sensors | None = None
        self._gate: WorkGate | None = None
        self._acting = asyncio.Lock()
        self._is_counting = True
        self.verdict = Verdict()

    async def first_verdict(self) -> Verdict:
        """Look once, before there is a node."""
        await self._look()
        return self.verdict

    async def run(self, gate: WorkGate) -> None:
        """Keep `gate` as the verdict is, for ever."""
        self._gate = gate
        while True:
            await self._act()
            await asyncio.sleep(LOOK_S)
            await self._look()

    async def pause(self, duration_s: float | None) -> None:
        """The owner wants the machine: returns within a second, when nothing is computed for others. Outlives us."""
        await self._set(UserPause(None if duration_s is None else self._clock() + duration_s))

    async def resume(self) -> None:
        """The owner's pause is over; other reasons stay."""
        await self._set(None)

    async def _set(self, pause: UserPause | None) -> None:
        self._pause = pause
        try:
            self._kept.write(pause)
        except OSError as error:
            log_event(PauseNotKept(type(error).__name__))
        self._decide()
        await self._act()

    async def _look(self) -> None:
        now_s = self._clock()
        self._count(asyncio.get_running_loop().time())
        if self._sensors is None or not 0 <= now_s - self._sensors.now_s < SENSE_S:
            self._sensors = await asyncio.to_thread(self._read_sensors, now_s, self._meter.month_bytes)
        self._decide()

    def _count(self, now: float) -> None:
        """Count what was transferred. A full disk does not keep a node from serving; it is said once."""
        try:
            self._meter.update(now)
        except OSError as error:
            if self._is_counting:
                log_event(TransferNotCounted(type(error).__name__))
            self._is_counting = False
        else:
            self._is_counting = True

    def _decide(self) -> None:
        now_s, seen = self._clock(), self._sensors or Sensors(self._clock())
        seen = replace(seen, now_s=now_s, month_bytes=self._meter.month_bytes)
        before, self.verdict = self.verdict, decide(
            self._settings, self._schedule, seen, self._pause, self.verdict.reason
        )  # fmt: skip
        if self.verdict.reason != before.reason:
            log_event(
                NodePaused(self.verdict.reason, self.verdict.until_s) if self.verdict.reason else NodeResumed()
            )  # fmt: skip

    async def _act(self) -> None:
        """Bring the gate to the verdict, which may change meanwhile."""
        async with self._acting:
            if self._gate is None:
                return
            if self.verdict.reason is None:
                self._gate.open()
            else:
                await self._gate.close()
