"""Where the processes of one simulation keep their temporary files: one directory, cleared at the end or by the next.

Processes that are killed leave sockets behind. The directory's name has the simulation's process id in it, so that the
next run knows whose it was.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import psutil

NAME = re.compile(r"shoal-(\d+)-\d+")
"""Short, for sockets are made in it, and a socket's path has 103 bytes."""


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """A directory for this process's simulation; those of simulations that are no more are removed."""
    base = Path(tempfile.gettempdir())
    for old in base.iterdir():
        if (name := NAME.fullmatch(old.name)) and not psutil.pid_exists(int(name[1])):
            shutil.rmtree(old, ignore_errors=True)
    directory = _make(base)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _make(base: Path) -> Path:
    for number in count():
        directory = base / f"shoal-{os.getpid()}-{number}"
        with suppress(FileExistsError):
            directory.mkdir(0o700)
            break
    return directory


@contextmanager
def temporary_files_in(directory: Path) -> Iterator[None]:
    """Let this process's temporary files be made there."""
    before = tempfile.tempdir
    tempfile.tempdir = str(directory)
    try:
        yield
    finally:
        tempfile.tempdir = before
