"""One HTTP connection, with the deadlines that uvicorn lacks: for a request's arrival and for a reader that stops.

Without them a client that connects and says nothing holds a connection for ever, and one that stops reading holds an
answer (measured on uvicorn 0.54). Aborting the connection is what ends the work: the application sees a disconnect.
"""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_TIMEOUT_S = 60.0
"""From a connection, or a request's first byte, to its last: body.py gives the body half of it."""

SLOW_READER_TIMEOUT_S = 30.0
"""How long a reader may leave 64 KiB (asyncio's high-water mark) unread."""


class Connection(H11Protocol):
    """uvicorn's connection with two timers."""

    arrival: asyncio.TimerHandle | None = None
    reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._expect_request()
        else:
            _cancel(self.arrival)
            self.arrival = None

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self.arrival)
        _cancel(self.reading)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.reading = self.loop.call_later(SLOW_READER_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self.reading)

    def _expect_request(self) -> None:
        """Between requests uvicorn's own keep-alive timer runs, and is shorter."""
        if self.arrival is None:
            self.arrival = self.loop.call_later(REQUEST_TIMEOUT_S, self.transport.abort)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
