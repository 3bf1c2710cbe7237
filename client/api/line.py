"""The line before the model: so many sequences run, so many requests wait, the next is told to come back later.

Bounded, so that a crowd costs an answer of 429 and never memory. Knows no model.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from shoal.client.api.errors import ApiError

MIN_RETRY_AFTER_S, MAX_RETRY_AFTER_S = 1.0, 60.0
"""What a refused client is told at least and at most."""

SMOOTHING = 0.2
"""Weight of the last request in the running mean of durations: about the last five count."""


class Line:
    """Places for sequences. Fair: who waits longest is next."""

    def __init__(self, max_running: int, max_queue: int, clock: Callable[[], float]) -> None:
        """clock: seconds, for durations."""
        self._max_running = max_running
        self._max_requests = max_running + max_queue
        self._places = asyncio.Semaphore(max_running)
        self._clock = clock
        self._num_requests = 0
        self._mean_s = MIN_RETRY_AFTER_S
        self.num_running = 0
        self.num_waiting = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Be in the house with one request.

        Raises:
            ApiError: 429, the line is full.
        """
        if self._num_requests >= self._max_requests:
            raise ApiError(429, "queue_full", f"{self._num_requests} requests are waiting or running already",
                           retry_after_s=self._retry_after_s())  # fmt: skip
        self._num_requests += 1
        began = self._clock()
        try:
            yield
        finally:
            self._num_requests -= 1
            self._mean_s += SMOOTHING * (self._clock() - began - self._mean_s)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place for one sequence and hold it."""
        self.num_waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.num_waiting -= 1
        self.num_running += 1
        try:
            yield
        finally:
            self.num_running -= 1
            self._places.release()

    def _retry_after_s(self) -> float:
        """When a place in the line is likely: one request's share of the mean duration."""
        return min(max(self._mean_s / self._max_running, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)
