"""A name for every response, so that a report of trouble can say which: `x-request-id`."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal.client.api.services import Services


class RequestId:
    """Adds the header to every response, refusals included."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = self._services.new_id("req")
            await send(message)

        await self._app(scope, receive, named if scope["type"] == "http" else send)
