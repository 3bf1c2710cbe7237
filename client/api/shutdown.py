"""The end of a gateway: first no new work, then no work at all, and everyone is told."""

import asyncio

from shoal.client.api.errors import ApiError

RETRY_AFTER_S = 10.0
"""A service manager has started the next one by then."""


class Shutdown:
    """Where the gateway stands on its way out."""

    def __init__(self) -> None:
        self._is_draining = False
        self._over = asyncio.Event()

    def begin(self) -> None:
        """Refuse new work; let the rest finish."""
        self._is_draining = True

    def finish(self) -> None:
        """End the rest, with an error that says why."""
        self._over.set()

    def check(self) -> None:
        """Raises ApiError: 503, no new work is taken."""
        if self._is_draining:
            raise self.error()

    async def over(self) -> None:
        """Wait until the rest must end."""
        await self._over.wait()

    def error(self) -> ApiError:
        return ApiError(503, "shutting_down", "the gateway is shutting down", retry_after_s=RETRY_AFTER_S)
