"""Asking several, within a budget: all answer in time, or the first good answer wins and the loser is cancelled.

Beside dispatch, which says when a second holder is worth asking. Knows no peers and no clock.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Generic, TypeVar

from shoal.protocol.errors import ShoalError

Result = TypeVar("Result")
Work = Coroutine[None, None, Result]


class Budget:
    """Permission for extra work as a share of the ordinary work; a burst may be saved up for bad moments."""

    def __init__(self, share: float, burst: float) -> None:
        """share: extra requests per ordinary one. burst: most that is saved up, and what is there at the start."""
        self._share = share
        self._burst = burst
        self._saved = burst

    def earn(self) -> None:
        """Count one ordinary request."""
        self._saved = min(self._saved + self._share, self._burst)

    def take(self) -> bool:
        """Ask for one extra request; False if the budget is spent."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True


@dataclass(frozen=True, slots=True)
class Raced(Generic[Result]):
    """The answer that won."""

    result: Result
    is_backup: bool


async def race(
    primary: Work[Result],
    after_s: float,
    when_to_back_up: Callable[[], Awaitable[Work[Result] | None]],
) -> Raced[Result]:
    """Run `primary`; when `when_to_back_up` returns another way to the same answer, that too: the first success wins.

    Nothing but a timer stands beside the primary for `after_s` (most answers come sooner, and a task that waits would
    cost each of them two turns of the loop). Then `when_to_back_up` waits for as long as the primary deserves beyond
    that, and returns None if there is no other way.

    Raises:
        ShoalError: the primary failed and no backup ran, or both failed; the primary's error.

    *Cancellation:* both are cancelled. They have ended when this returns, whatever the outcome.
    """
    first = asyncio.create_task(primary)
    try:
        done, _ = await asyncio.wait({first}, timeout=after_s)
    except asyncio.CancelledError:
        await end(first)
        raise
    if done:
        return Raced(first.result(), is_backup=False)
    return await _race_late(first, _Backup(when_to_back_up))


async def _race_late(first: asyncio.Task[Result], backup: "_Backup[Result]") -> Raced[Result]:
    second = asyncio.create_task(backup.run())
    try:
        await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
        if first.done():
            if first.exception() is None:
                return Raced(first.result(), is_backup=False)
            if not backup.is_running:
                return Raced(await first, is_backup=False)  # raises
        if await _succeeds(second):
            return Raced(second.result(), is_backup=True)
        return Raced(await first, is_backup=False)
    finally:
        await end(first, second)


class _Backup(Generic[Result]):
    """Waits, then runs the backup."""

    def __init__(self, when: Callable[[], Awaitable[Work[Result] | None]]) -> None:
        self._when = when
        self.is_running = False

    async def run(self) -> Result:
        backup = await self._when()
        if backup is None:
            raise _NoBackup
        self.is_running = True
        return await backup


class _NoBackup(ShoalError):
    """There is no other way."""


async def _succeeds(task: asyncio.Task[Result]) -> bool:
    """Wait for the end of a task; False if it failed as peers fail."""
    await asyncio.wait({task})
    if task.cancelled():
        raise asyncio.CancelledError
    error = task.exception()
    if error is not None and not isinstance(error, ShoalError):
        raise error
    return error is None


async def all_within(answers: Collection[asyncio.Future[Result]], timeout_s: float) -> bool:
    """Wait for all of them for so long; whether all have succeeded. False as soon as one fails."""
    _, pending = await asyncio.wait(answers, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
    return not pending and all(answer.exception() is None for answer in answers)


async def end(*answers: asyncio.Future[Result]) -> None:
    """Cancel those that are not done, and wait for their end."""
    running = [answer for answer in answers if not answer.done()]
    for answer in running:
        answer.cancel()
    if running:
        await asyncio.wait(running)
    for answer in answers:
        if not answer.cancelled():
            answer.exception()  # whatever it was, the other answered, or it was told already
