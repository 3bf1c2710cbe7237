"""`shoal chat --web`: one server, and a process of `shoal chat` for each browser window.

The swarm of `--demo` is started once and all windows join it. Tokens and keys go to the processes by their environment,
which other users cannot read; their command lines, which `ps` shows to everybody, carry none.
"""

import asyncio
import os
import shlex
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from shoal.protocol.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Windows:
    """What a window's process is given."""

    arguments: Sequence[str]
    """Of `shoal chat`."""
    secrets: dict[str, str]
    """Environment variables."""


async def serve_in_browser(port: int, open_windows: AbstractAsyncContextManager[Windows]) -> None:
    """Serve until cancelled (Ctrl-C); everything that was started ends with it.

    Raises:
        InvalidRequest: textual-serve is not installed. AddressInUse: the port is taken.
    """
    try:
        from shoal.client.tui.web import SCREEN_MARK, browser_server
    except ModuleNotFoundError as error:
        raise InvalidRequest(f"--web needs {error.name}; try: pip install 'shoal[web]'") from None
    async with open_windows as windows:
        os.environ.update(windows.secrets, **{SCREEN_MARK: str(os.getpid())})
        command = "exec " + shlex.join([sys.executable, "-m", "shoal.cli", "chat", *windows.arguments])
        async with browser_server(command, os.urandom(16).hex(), port) as address:
            print(f"open {address}\nCtrl-C ends it.", flush=True)
            await asyncio.Event().wait()


@asynccontextmanager
async def joining(arguments: Sequence[str], secrets: dict[str, str]) -> AsyncIterator[Windows]:
    """Windows that need nothing of ours."""
    yield Windows(arguments, secrets)


@asynccontextmanager
async def of_nodes(arguments: Sequence[str], invite: AbstractAsyncContextManager[str]) -> AsyncIterator[Windows]:
    """Windows into a swarm of ours."""
    async with invite as token:
        yield Windows(arguments, {"SHOAL_JOIN": token})
