"""The same screens in a browser: textual-serve, on loopback, shut to everybody who does not have the key.

A visitor is a process of `shoal chat`; what it draws goes over a websocket. textual-serve lets any web page of any site
open that websocket, so everything here stands behind three checks: the Host that was asked for is ours (DNS rebinding),
the Origin is our own page, and the cookie is there that only the address with the key gives (DESIGN §6, R9).
"""

import asyncio
import hmac
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from textual_serve.server import Server

from shoal.protocol.errors import AddressInUse

HOST = "127.0.0.1"
PAGE_DIRECTORY = Path(__file__).resolve().parent / "web_page"
COOKIE = "shoal_key"

SCREEN_MARK = "SHOAL_CHAT_SERVER"
"""Environment of a screen's process: the pid of its server, without which it has nobody to draw for."""

GRACE_S = 5.0
"""A screen leaves its swarm in less; then it is killed, so that none outlives its server."""

LOOK_S = 0.05
"""Between two looks whether it has left."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; font-src 'self'; img-src 'self' data:;"
    " connect-src 'self' ws:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""Content-Security-Policy: nothing from elsewhere, in nobody's frame. The terminal writes its own styles."""


class BrowserServer(Server):
    """textual-serve behind our checks. `port` and `public_url` are set once the port is known."""

    def __init__(self, command: str, key: str) -> None:
        """command: what a shell runs for each visitor; it must not contain secrets, which `ps` would show."""
        super().__init__(command, HOST, 0, title="shoal chat", templates_path=str(PAGE_DIRECTORY))
        self._key = key

    async def on_startup(self, app: web.Application) -> None:
        """Textual's banner would show the command; the verb says where to go."""

    async def make_app(self) -> web.Application:
        """Its application, with our checks in front."""
        app = await self._make_app()
        app.middlewares.append(self._checked())
        return app

    def listen_on(self, port: int) -> None:
        """The port is known now."""
        self.port, self.public_url = port, f"http://{HOST}:{port}"

    def _checked(self) -> Middleware:
        @web.middleware
        async def checked(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.headers.get("Host") != f"{HOST}:{self.port}":
                raise web.HTTPForbidden(text="this is not the address that I was given")
            if request.headers.get("Origin", self.public_url) != self.public_url:
                raise web.HTTPForbidden(text="another site's page may not talk to me")
            if request.path == "/" and self._is_key(request.query.get("key", "")):
                found = web.HTTPFound("/")
                found.set_cookie(COOKIE, self._key, httponly=True, samesite="Strict")
                raise found
            if not self._is_key(request.cookies.get(COOKIE, "")):
                raise web.HTTPForbidden(text="open the address that `shoal chat --web` printed, with its key")
            response = await handler(request)
            if not response.prepared:
                response.headers["Content-Security-Policy"] = POLICY
                response.headers["Referrer-Policy"] = "no-referrer"
                response.headers["Cache-Control"] = "no-store"
            return response

        return checked

    def _is_key(self, words: str) -> bool:
        return hmac.compare_digest(words.encode(), self._key.encode())


@asynccontextmanager
async def browser_server(command: str, key: str, port: int) -> AsyncIterator[str]:
    """Serve inside the `with`; gives the address to open. port: 0 for any free one.

    Raises:
        AddressInUse: another program listens there.

    At the end every screen is told to leave, and killed if it has not within GRACE_S.
    """
    server = BrowserServer(command, key)
    runner = web.AppRunner(await server.make_app(), shutdown_timeout=1.0, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, HOST, port).start()
        except OSError:
            raise AddressInUse(f"{HOST}:{port}") from None
        server.listen_on(runner.addresses[0][1])
        yield f"{server.public_url}/?key={key}"
    finally:
        await asyncio.shield(asyncio.to_thread(_end_screens))
        await runner.cleanup()


def _end_screens() -> None:
    """End the processes that were started for visitors: our children with the mark."""
    screens = [child for child in psutil.Process().children() if _is_screen(child)]
    for screen in screens:
        _signal(screen, is_last=False)
    if not _have_gone(screens):
        for screen in screens:
            _signal(screen, is_last=True)
        _have_gone(screens)


def _have_gone(screens: Sequence[psutil.Process]) -> bool:
    """Whether the loop has seen all of them end within GRACE_S. It alone may: were it done here, as by
    `psutil.wait_procs`, the loop would find nobody to wait for, and leave the pipes unclosed."""
    pause = threading.Event()
    for _ in range(round(GRACE_S / LOOK_S)):
        if not any(screen.is_running() for screen in screens):
            return True
        pause.wait(LOOK_S)
    return False


def _is_screen(child: psutil.Process) -> bool:
    try:
        return SCREEN_MARK in child.environ()
    except psutil.Error:
        return False


def _signal(process: psutil.Process, is_last: bool) -> None:
    try:
        process.kill() if is_last else process.terminate()
    except psutil.Error:
        return  # it has gone by itself
