"""Responses whose work ends when their client does, streaming or not.

Starlette and uvicorn cancel neither on their own: a handler without a stream runs to its end for nobody (measured on
uvicorn 0.54; vLLM has the same). In a swarm that would be strangers' electricity. What nobody foresaw becomes one line
in the log, without the exception's text, which may quote a prompt.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from shoal.client.api.errors import ApiError, api_error
from shoal.client.api.services import Services

PING_S = 15.0
"""Between comments in a silent stream: proxies give up after 30 to 60 s. All six clients tried accept them."""

LOG = logging.getLogger("shoal.api")

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

Result = TypeVar("Result")
Emit = Callable[[dict[str, object]], Awaitable[None]]
"""Sends one event; waits while the client reads slowly."""


class ClientGone(Exception):
    """There is nobody to answer."""


class JsonAnswer(Response):
    """One JSON object, when the work is done."""

    def __init__(self, services: Services, work: Callable[[], Coroutine[object, object, dict[str, object]]]) -> None:
        self._services = services
        self._work = work
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await unless_over(self._services, receive, self._work())
        except ClientGone:
            return
        except Exception as error:  # the request's boundary: reported to the client and to the log
            await reported(self._services, error).response()(scope, receive, send)
            return
        await Response(json.dumps(body, ensure_ascii=False), media_type="application/json")(scope, receive, send)


class EventStream(Response):
    """Server-sent events while the work goes on.

    What happens first decides the status: an error before the first event is a response of its own, one after it is an
    event. A stream that is complete ends with `[DONE]`, any other with an error event.
    """

    def __init__(self, services: Services, work: Callable[[Emit], Coroutine[object, object, None]]) -> None:
        self._services = services
        self._work = work
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        events = _Events(send)
        pings = asyncio.create_task(events.ping())
        try:
            await unless_over(self._services, receive, self._work(events.emit))
            await events.end("data: [DONE]\n\n")
        except ClientGone:
            return
        except Exception as error:  # the request's boundary: reported to the client and to the log
            told = reported(self._services, error)
            if events.has_begun:
                await events.end(_event(told.envelope()))
            else:
                await told.response()(scope, receive, send)
        finally:
            pings.cancel()
            await asyncio.wait([pings])


class _Events:
    """The wire side of a stream. Events of several sequences may come at once."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._sending = asyncio.Lock()
        self.has_begun = False

    async def emit(self, event: dict[str, object]) -> None:
        await self._write(_event(event))

    async def end(self, last: str) -> None:
        await self._write(last, is_last=True)

    async def ping(self) -> None:
        """Show proxies that we live, even before the first token."""
        while True:
            await asyncio.sleep(PING_S)
            await self._write(": ping\n\n")

    async def _write(self, text: str, is_last: bool = False) -> None:
        async with self._sending:
            if not self.has_begun:
                self.has_begun = True
                await self._send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
            await self._send({"type": "http.response.body", "body": text.encode(), "more_body": not is_last})


async def unless_over(services: Services, receive: Receive, work: Coroutine[object, object, Result]) -> Result:
    """The work's result, or: its client is gone, or the gateway ends; then the work is cancelled first.

    Raises:
        ClientGone. ApiError: 503, the gateway ends. What the work raises.
    """
    task = asyncio.create_task(work)
    gone, over = asyncio.create_task(_gone(receive)), asyncio.create_task(services.shutdown.over())
    try:
        await asyncio.wait({task, gone, over}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if over.done():
            raise services.shutdown.error()
        services.metrics.aborted.inc()
        raise ClientGone
    finally:
        for each in (task, gone, over):
            each.cancel()
        await asyncio.wait({task, gone, over})


def reported(services: Services, error: BaseException) -> ApiError:
    """The error for the client; counted, and logged if nobody foresaw it."""
    told = api_error(error)
    if told is None:
        LOG.error("internal error: %s", _place(error))
        told = ApiError(500, "internal_error", "internal error; the gateway's log says where")
    services.metrics.request_errors.labels(told.code).inc()
    return told


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(data: dict[str, object]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _place(error: BaseException) -> str:
    """Kind and place of an error, without its text."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
    return type(error).__name__ + place
