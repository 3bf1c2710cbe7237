"""Waves that enter one at a time, each behind the last, for whoever does not know yet what will come next.

As `wavefront.py`, whose turns these are, for passes of drafts that follow one another (docs/adr/0035): each wave's
result is there as soon as it is through, and the last waves may be cancelled at any time; what enters afterwards would
stand behind them, so nothing must. Knows the order and who is busy; knows no rows, no layers and no drafts.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from shoal.client.trunk.wavefront import Turn

Result = TypeVar("Result")


class Line(Generic[Result]):
    """One line of waves. *Limits:* whoever sends waves in bounds their number."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        """group: where the waves run; it ends when all of them have."""
        self._group = group
        self._changed = asyncio.Event()
        self._turns: list[Turn] = []  # of waves that are not through

    def enter(self, run_wave: Callable[[Turn], Awaitable[Result]]) -> asyncio.Task[Result]:
        """Send a wave in. It must not raise for what its owner would rather be told in its turn."""
        turn = Turn(self._turns[-1] if self._turns else None, self._changed)
        self._turns.append(turn)
        return self._group.create_task(self._run(turn, run_wave))

    @property
    def is_empty(self) -> bool:
        """Whether every wave is through."""
        return all(turn.is_done for turn in self._turns)

    async def until_idle(self) -> None:
        """Wait until the trunk would have nothing to do without another wave: the last one has begun, all wait."""
        while not self._is_idle():
            self._changed.clear()
            await self._changed.wait()

    def _is_idle(self) -> bool:
        self._turns = [turn for turn in self._turns if not turn.is_done]
        return not self._turns or (
            self._turns[-1].num_attended > 0 and not any(turn.is_on_trunk for turn in self._turns)
        )

    async def _run(self, turn: Turn, run_wave: Callable[[Turn], Awaitable[Result]]) -> Result:
        result = await run_wave(turn)
        turn.done()
        return result
