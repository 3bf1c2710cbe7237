"""The seam of discovery: where bootstrap addresses come from when nobody has named any, or none of those answers.

Back end: `mdns` (the LAN). What a source yields is a hint from strangers: whoever dials it finds out who is there.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Protocol

from shoal.protocol.lan import LanSwarm
from shoal.protocol.limits import MAX_ADDRESSES

FIRST_WAIT_S = 2.0
"""For somebody to answer: an answer takes 20-120 ms by RFC 6762 §6, a second question follows after 1 s."""

GRACE_S = 0.25
"""For others to answer, once one has: the first may be the one that was just switched off."""


class Discovery(Protocol):
    """Peers of one swarm, as they are found."""

    def addresses(self) -> AsyncGenerator[str, None]:
        """Multiaddrs with /p2p/ID: those known already, then new ones as they appear, for ever."""

    async def announce(self, public_key: bytes, port: int) -> None:
        """Say that a peer with this key is here, its libp2p at `port`, until the end of the context."""


Discover = Callable[[LanSwarm], AbstractAsyncContextManager[Discovery]]
"""Opens a source for one swarm. Raises NetworkError where there is none."""


async def first_addresses(discovery: Discovery, wait_s: float = FIRST_WAIT_S, grace_s: float = GRACE_S) -> list[str]:
    """What is found within `wait_s`, or within `grace_s` after the first; at most `MAX_ADDRESSES`. May be empty."""
    found: list[str] = []
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(wait_s) as patience, aclosing(discovery.addresses()) as addresses:
            async for address in addresses:
                if not found:
                    patience.reschedule(loop.time() + grace_s)
                found.append(address)
                if len(found) >= MAX_ADDRESSES:
                    break
    except TimeoutError:
        pass
    return found
