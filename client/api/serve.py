"""Where the gateway listens: one port, until it is told to stop.

uvicorn does the HTTP of a connection. Its `Server` is not used: it exits the process where a port is taken, and raises
a SIGTERM again when it is done, which would end the process before the swarm has been left.
"""

import asyncio
import errno
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from shoal.client.api.connection import Connection
from shoal.client.api.settings import ApiSettings
from shoal.client.api.shutdown import Shutdown
from shoal.protocol.errors import AddressInUse, InvalidRequest

DRAIN_TIMEOUT_S = 10.0
"""For answers that are being written when the gateway is told to stop; then they end with an error event."""

CLOSE_TIMEOUT_S = 2.0
"""For connections to take their last bytes."""

KEEP_ALIVE_S = 30
"""An idle connection's life: longer than a person's pause between two messages costs little and saves a handshake."""

MAX_CONNECTIONS = 1024
"""More get 503 at once: a quarter of a common limit of open files."""


async def serve_until_stopped(
    app: ASGIApp, settings: ApiSettings, shutdown: Shutdown, on_ready: Callable[[str], None]
) -> None:
    """Listen until SIGTERM or SIGINT, then drain; a second signal ends it at once. on_ready: told the base URL.

    Raises:
        AddressInUse: the port is taken. InvalidRequest: the host is none of this machine.
    """
    stop = asyncio.Event()
    loop, main = asyncio.get_running_loop(), asyncio.current_task()

    def on_signal() -> None:
        if stop.is_set() and main is not None:
            main.cancel()
        stop.set()

    async with listening(app, settings, shutdown) as url:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        try:
            on_ready(url)
            await stop.wait()
        finally:
            shutdown.begin()


@asynccontextmanager
async def listening(app: ASGIApp, settings: ApiSettings, shutdown: Shutdown) -> AsyncIterator[str]:
    """Accept connections inside the block; gives the base URL. Raises as `serve_until_stopped`.

    At the end: no new work, then `DRAIN_TIMEOUT_S` for the rest, then everyone is told and every connection closed.
    """
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,  # a path may quote what its sender likes
        proxy_headers=False,  # nobody may say who he is
        server_header=False,
        date_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    config.load()
    state = ServerState()
    server = await _listen(lambda: Connection(config=config, server_state=state, app_state={}), settings)
    try:
        yield _url(settings.host, server)
    finally:
        await _close(server, state, shutdown)


async def _listen(make: Callable[[], asyncio.Protocol], settings: ApiSettings) -> asyncio.Server:
    try:
        return await asyncio.get_running_loop().create_server(make, settings.host, settings.port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(f"{settings.host}:{settings.port}") from error
        raise InvalidRequest(f"can not listen on {settings.host}:{settings.port}: {error.strerror}") from error


async def _close(server: asyncio.Server, state: ServerState, shutdown: Shutdown) -> None:
    shutdown.begin()
    await _ended(state, DRAIN_TIMEOUT_S)
    shutdown.finish()
    await _ended(state, CLOSE_TIMEOUT_S)
    server.close()
    for connection in list(state.connections):
        if isinstance(connection, Connection):  # all are: we made them
            connection.transport.abort()
    await _ended(state, CLOSE_TIMEOUT_S)


async def _ended(state: ServerState, timeout_s: float) -> None:
    """Wait for the requests in flight."""
    if state.tasks:
        await asyncio.wait(set(state.tasks), timeout=timeout_s)


def _url(host: str, server: asyncio.Server) -> str:
    port = server.sockets[0].getsockname()[1]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
