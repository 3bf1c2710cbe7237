"""A few threads over many items, results in order, and only so many items in hand: memory stays bounded.

For work that leaves Python's lock alone most of the time: reading files, BLAKE3, torch. Knows nothing of what is done.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def mapped(work: Callable[[Item], Result], items: Iterable[Item], num_jobs: int) -> Iterator[Result]:
    """`map` by `num_jobs` threads; at most so many items are begun and not yet taken.

    What `work` raises is raised in its item's turn; what has begun meanwhile is finished first, nothing new is begun.
    """
    if num_jobs <= 1:
        yield from map(work, items)
        return
    begun: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(num_jobs) as pool:
        for item in items:
            if len(begun) >= num_jobs:
                yield begun.popleft().result()
            begun.append(pool.submit(work, item))
        while begun:
            yield begun.popleft().result()
