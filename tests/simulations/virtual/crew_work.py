"""What the tests of `Crew` have its processes do."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

DIES_OF = 3
STATUS = 7


@contextmanager
def squares() -> Iterator[Callable[[int], tuple[int, int]]]:
    """A seed's square; one of them ends the process."""

    def square(seed: int) -> tuple[int, int]:
        if seed == DIES_OF:
            os._exit(STATUS)
        return seed, seed * seed

    yield square


@contextmanager
def whose() -> Iterator[Callable[[int], int]]:
    """Which process worked on a seed."""
    yield lambda seed: os.getpid()


@contextmanager
def nothing() -> Iterator[Callable[[int], int]]:
    """Can not even begin."""
    os._exit(STATUS)
    yield lambda seed: seed
