"""Waves of one pass on their way through the layers: while one waits for its experts, the next ones compute.

Between a pass and the layers (`model.py`). In every layer a wave attends after the one ahead of it, so that a prompt's
later tokens find the earlier ones in the cache and each wave's bits are those of waves that go one after another.
Answers may come in any order. Knows the order and who is busy; knows no rows, no layers and no experts.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Wave = TypeVar("Wave")
Result = TypeVar("Result")

MayEnter = Callable[[Wave], bool]
"""Whether a wave should still begin; with the first that should not, those after it stay out too."""


class Turn:
    """One wave's place in the order."""

    def __init__(self, ahead: "Turn | None", changed: asyncio.Event) -> None:
        self._ahead = ahead
        self._changed = changed  # of the whole front
        self._moved = asyncio.Event()  # for the wave behind
        self.num_attended = 0
        """Layers whose attention this wave has behind it."""
        self.is_on_trunk = False
        """Whether it computes now, or waits for the trunk; else it waits for its experts or for the wave ahead."""
        self.is_done = False

    async def begin(self) -> None:
        """Wait until the wave ahead has attended in the layer that is next."""
        if self._ahead is not None:
            await self._ahead.until_attended(self.num_attended + 1)
        self.is_on_trunk = True

    def attended(self) -> None:
        """The layer's attention is done, and what comes after it is the experts' work."""
        self.num_attended += 1
        self.is_on_trunk = False
        self._moved.set()
        self._changed.set()

    def done(self) -> None:
        """The wave is through."""
        self.is_on_trunk, self.is_done = False, True
        self._changed.set()

    async def until_attended(self, count: int) -> None:
        """Wait until this wave has attended in so many layers. For one wave only: the one behind."""
        while self.num_attended < count:
            self._moved.clear()
            await self._moved.wait()


class Wavefront(Generic[Wave, Result]):
    """Sends waves in.

    *Limits:* `depth` waves under way at a time. A wave begins when the trunk would have nothing to do without it: so
    there are no more of them under way than the experts' answers take long, and a pass that should end soon can.
    """

    def __init__(self, depth: int, run_wave: Callable[[Wave, Turn], Awaitable[Result]]) -> None:
        self._depth = depth
        self._run_wave = run_wave
        self._changed = asyncio.Event()
        self._turns: list[Turn] = []

    async def run(self, waves: Sequence[Wave], may_enter: MayEnter[Wave]) -> list[Result]:
        """The results of the waves that were let in, in their order: the first, and as many more as may enter.

        Raises what a wave raises; the others are cancelled then.
        """
        tasks: list[asyncio.Task[Result]] = []
        try:
            async with asyncio.TaskGroup() as group:
                for wave in waves:
                    await self._until_idle()
                    if tasks and not may_enter(wave):
                        break
                    turn = Turn(self._turns[-1] if self._turns else None, self._changed)
                    self._turns.append(turn)
                    tasks.append(group.create_task(self._run(wave, turn)))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _run(self, wave: Wave, turn: Turn) -> Result:
        result = await self._run_wave(wave, turn)
        turn.done()
        return result

    async def _until_idle(self) -> None:
        """Wait until there is room, the last wave has begun, and none of them is on the trunk."""
        while not self._has_room():
            self._changed.clear()
            await self._changed.wait()

    def _has_room(self) -> bool:
        under_way = [turn for turn in self._turns if not turn.is_done]
        has_begun = not self._turns or self._turns[-1].num_attended > 0
        return has_begun and len(under_way) < self._depth and not any(turn.is_on_trunk for turn in under_way)
