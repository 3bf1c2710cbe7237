"""How far a peer is, from what TCP's own handshake takes: its kernel answers, however busy its programs are.

Nothing is sent and nobody is authenticated: a hint, for choices that cost nothing if it is wrong.
"""

import asyncio
import re
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address

from shoal.protocol.limits import MAX_ADDRESSES

TRIES = 3
"""Of which the shortest counts: our own loop may be late."""

TIMEOUT_S = 1.0
"""Who takes longer is far, or not to be reached."""

_MULTIADDR = re.compile(r"/ip[46]/([^/]+)/tcp/(\d+)(?:/p2p/[^/]+)?")
"""Without a relay's."""


async def round_trip_s(
    addresses: Sequence[str], clock: Callable[[], float], excluded: Sequence[str] = ()
) -> float | None:
    """The shortest round trip to one of a peer's multiaddrs; None: none was reached. clock: seconds.

    excluded: multiaddrs of our own; another machine's address of a private network may be one of ours too.
    """
    ours = {_place(address) for address in excluded}
    places = {_place(address) for address in addresses[:MAX_ADDRESSES]} - ours
    found = await asyncio.gather(*(_shortest_s(*place, clock) for place in places if place is not None))
    return min((each for each in found if each is not None), default=None)


def _place(address: str) -> tuple[str, int] | None:
    """IP address and port; None: it has none."""
    match = _MULTIADDR.fullmatch(address)
    if match is None:
        return None
    try:
        host, port = str(ip_address(match[1])), int(match[2])
    except ValueError:
        return None
    return (host, port) if 0 < port < 65536 else None


async def _shortest_s(host: str, port: int, clock: Callable[[], float]) -> float | None:
    taken_s: list[float] = []
    try:
        async with asyncio.timeout(TIMEOUT_S):
            for _ in range(TRIES):
                taken_s.append(await _connect_s(host, port, clock))
    except OSError:  # TimeoutError among them
        pass
    return min(taken_s, default=None)


async def _connect_s(host: str, port: int, clock: Callable[[], float]) -> float:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        begun_s = clock()
        await asyncio.get_running_loop().sock_connect(probe, (host, port))
        return clock() - begun_s
