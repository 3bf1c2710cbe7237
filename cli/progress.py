"""A progress bar on stderr for work that takes longer than a moment; nothing where stderr is no terminal."""

import sys
from types import TracebackType
from typing import ClassVar, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text


class ProgressBar:
    """Bytes, rate and time left of one or more stages; call it with (stage, bytes done, bytes in all)."""

    _COLUMNS: ClassVar[tuple[type[ProgressColumn], ...]] = (
        BarColumn,
        DownloadColumn,
        TransferSpeedColumn,
        TimeRemainingColumn,
    )

    def __init__(self) -> None:
        columns = [column() for column in self._COLUMNS]
        console = Console(file=sys.stderr)
        self._progress = Progress(
            TextColumn("{task.description}"), *columns, console=console, transient=True, disable=not console.is_terminal
        )
        self._stages: dict[str, TaskID] = {}

    def __call__(self, stage: str, done_bytes: int, total_bytes: int) -> None:
        if stage not in self._stages:
            self._stages[stage] = self._progress.add_task(stage, total=total_bytes)
        self._progress.update(self._stages[stage], completed=done_bytes)

    def start(self) -> None:
        """Show it, again perhaps."""
        self._progress.start()

    def stop(self) -> None:
        """Take the bar away. Idempotent."""
        self._progress.stop()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class StepBar(ProgressBar):
    """The same for what is counted in steps, not in bytes."""

    _COLUMNS: ClassVar[tuple[type[ProgressColumn], ...]] = (BarColumn, MofNCompleteColumn, TimeRemainingColumn)


class RateColumn(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        """See `ProgressColumn`."""
        return Text("" if task.speed is None else f"{task.speed:.1f}/s")


class RateBar(StepBar):
    """Steps and their rate, for hours of them; a line may be said above it."""

    _COLUMNS = (BarColumn, MofNCompleteColumn, RateColumn, TimeRemainingColumn)

    @property
    def is_shown(self) -> bool:
        """Whether there is a terminal."""
        return not self._progress.disable

    def say(self, line: str) -> None:
        """Print a line that stays, on stderr."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
