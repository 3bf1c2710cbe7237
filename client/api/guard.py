"""Who may talk to the gateway: the outermost layer, before anything of a request is read.

Host allow-list (a web page that rebinds its own name to 127.0.0.1 sends its name), Origin (no page may call unless its
origin is named, with any method), bearer token. DESIGN §6 R9.
"""

import hmac
from collections.abc import Mapping
from hashlib import sha256
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from shoal.client.api.errors import ApiError
from shoal.client.api.settings import LOOPBACK_NAMES, ApiSettings

OPEN_PATHS = ("/health",)
"""Answered without a token: says that the process lives, and nothing else."""


class Guard:
    """Refuses strangers: 421 for a Host that is not ours, 403 for a page's Origin, 401 for a missing or wrong token."""

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self._app = app
        self._settings = settings
        names = (*LOOPBACK_NAMES, settings.host, *settings.allowed_hosts)
        self._host_names = frozenset(name.strip("[]").lower() for name in names)
        self._key_digest = None if settings.api_key is None else sha256(settings.api_key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is not None:
            await refusal.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if not self._is_our_host(headers):
            return ApiError(421, "wrong_host", "the Host of the request is not allowed; name it with --allowed-host")
        if not self._is_allowed_origin(headers):
            return ApiError(403, "origin_not_allowed", "pages of this origin may not call; name it with --cors-origin")
        if not (_is_preflight(scope, headers) or scope["path"] in OPEN_PATHS or self._is_authorized(headers)):
            return ApiError(401, "invalid_api_key", "the request carries no valid API key: Authorization: Bearer KEY")
        return None

    def _is_our_host(self, headers: Headers) -> bool:
        """A number can not be rebound, so behind an address that others reach any number will do."""
        hosts = headers.getlist("host")
        name = _host_name(hosts[0]) if len(hosts) == 1 else None
        if name is None or name in self._host_names:
            return name is not None
        return not self._settings.is_loopback and _is_number(name)

    def _is_allowed_origin(self, headers: Headers) -> bool:
        """No Origin: not a page. A page that we served ourselves has our own Host as its origin."""
        origins = headers.getlist("origin")
        own = {f"http://{headers['host']}", f"https://{headers['host']}"}
        return not origins or (len(origins) == 1 and origins[0] in own.union(self._settings.cors_origins))

    def _is_authorized(self, headers: Mapping[str, str]) -> bool:
        """Digests are compared, so that neither length nor content of the key shows in the time."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        digest = sha256(token.strip().encode()).digest()
        return self._key_digest is None or (
            hmac.compare_digest(digest, self._key_digest) and scheme.lower() == "bearer"
        )


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    """A browser asks whether it may ask; it carries no token then. Its origin has been checked."""
    is_asking = "origin" in headers and "access-control-request-method" in headers
    return is_asking and scope["method"] == "OPTIONS"


def _host_name(host: str) -> str | None:
    """The name in a Host header, lower case, without port and brackets; None: no name at all."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _is_number(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
