"""A client's credits: how many requests and bytes it may have in flight at a peer (PROTOCOL.md §10)."""

import asyncio
from collections import deque

from shoal.protocol.errors import DeadlineExceeded, ShoalError


class Credits:
    """Counts what WELCOME granted; `take` waits, first come first served, until replies have given enough back."""

    def __init__(self, num_requests: int, num_bytes: int) -> None:
        self._requests = num_requests
        self._bytes = num_bytes
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()

    def try_take(self, size_bytes: int) -> bool:
        """Take credits for one request without waiting; False if there are none or somebody waits already."""
        if self._waiters or not self._fits(size_bytes):
            return False
        self._spend(size_bytes)
        return True

    async def take(self, size_bytes: int, deadline: float) -> None:
        """Take credits for one request, waiting for them until the loop's clock shows `deadline`.

        Raises:
            DeadlineExceeded: no credits in time; nothing was sent. Whatever `fail` was told.

        Cancellation: takes nothing.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((size_bytes, waiter))
        try:
            async with asyncio.timeout_at(deadline):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.give(size_bytes)  # granted in the very moment of the cancellation
            elif (size_bytes, waiter) in self._waiters:
                self._waiters.remove((size_bytes, waiter))
                self._grant()
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("the peer's credits were used up until the deadline") from error
            raise

    def give(self, size_bytes: int) -> None:
        """Give back what a request took; its final answer has come."""
        self._requests += 1
        self._bytes += size_bytes
        self._grant()

    def fail(self, error: ShoalError) -> None:
        """End all waiting with `error`."""
        for _, waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error)
        self._waiters.clear()

    def _fits(self, size_bytes: int) -> bool:
        return self._requests >= 1 and self._bytes >= size_bytes

    def _spend(self, size_bytes: int) -> None:
        self._requests -= 1
        self._bytes -= size_bytes

    def _grant(self) -> None:
        while self._waiters:
            size_bytes, waiter = self._waiters[0]
            if waiter.done():  # cancelled; `take` is about to clean up
                self._waiters.popleft()
                continue
            if not self._fits(size_bytes):
                return
            self._waiters.popleft()
            self._spend(size_bytes)
            waiter.set_result(None)
