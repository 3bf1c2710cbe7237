"""The application: routes, and what stands before them."""

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from shoal.client.api.body import ClientDisconnect
from shoal.client.api.cancellable import reported
from shoal.client.api.chat import ChatEndpoint
from shoal.client.api.completions import CompletionEndpoint
from shoal.client.api.errors import ApiError
from shoal.client.api.guard import Guard
from shoal.client.api.request_id import RequestId
from shoal.client.api.services import Services
from shoal.client.api.settings import ApiSettings
from shoal.client.api.status import StatusEndpoints
from shoal.client.api.tokenize import TokenizerEndpoints

CORS_HEADERS = ["authorization", "content-type"]
"""What pages of named origins may send besides what browsers always may."""

CLIENT_GONE_STATUS = 499
"""nginx's; nobody reads it."""

NOT_OFFERED = ("/v1/responses", "/v1/messages", "/api/chat", "/api/generate")
"""What other servers have and clients try first: told what to use instead of a bare 404."""

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(services: Services, settings: ApiSettings) -> ASGIApp:
    """The whole API as one ASGI application."""
    chat, completions = ChatEndpoint(services), CompletionEndpoint(services)
    tokenizer, status = TokenizerEndpoints(services), StatusEndpoints(services)
    posts: dict[str, Endpoint] = {
        "/v1/chat/completions": chat.post,
        "/v1/completions": completions.post,
        "/tokenize": tokenizer.tokenize,
        "/detokenize": tokenizer.detokenize,
    }
    gets: dict[str, Endpoint] = {
        "/v1/models": status.models,
        "/v1/models/{name:path}": status.model,
        "/tokenizer_info": tokenizer.info,
        "/health": status.health,
        "/ready": status.ready,
        "/version": status.version,
        "/metrics": status.metrics,
    }
    routes = [
        *(Route(path, _bounded(services, endpoint), methods=["POST"]) for path, endpoint in posts.items()),
        *(Route(path, _bounded(services, endpoint), methods=["GET"]) for path, endpoint in gets.items()),
    ]
    app: ASGIApp = Starlette(routes=routes, exception_handlers={HTTPException: _no_such_path})
    if settings.cors_origins:
        app = CORSMiddleware(
            app, allow_origins=settings.cors_origins, allow_methods=["GET", "POST"], allow_headers=CORS_HEADERS
        )
    return RequestId(Guard(app, settings), services)


def _bounded(services: Services, endpoint: Endpoint) -> Endpoint:
    """The endpoint with its errors turned into OpenAI's envelope."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE_STATUS)
        except Exception as error:  # the request's boundary: reported to the client and to the log
            return reported(services, error).response()

    return answer


async def _no_such_path(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such path, or not with this method."""
    if request.url.path.rstrip("/") in NOT_OFFERED:
        words = f"this gateway has no {request.url.path}; use /v1/chat/completions, or /v1/completions"
        return ApiError(404, "not_offered", words).response()
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = error.headers if isinstance(error, HTTPException) else None
    code, words = {404: ("not_found", "no such path"), 405: ("method_not_allowed", "not with this method")}.get(
        status, ("http_error", "refused")
    )
    return ApiError(status, code, f"{request.method} {request.url.path}: {words}").response(headers)
