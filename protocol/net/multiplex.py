"""Requests and replies over the lanes of one peer: what every back end of `Channel` shares (PROTOCOL.md §10).

A back end only opens or accepts byte streams: `open_channel` for clients, `LaneServer` for servers. The streams must be
encrypted and must have proved the server's key to the client. Knows no addresses, sockets, certificates or libp2p.
"""

import logging
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable

from shoal.protocol.identity import Identity
from shoal.protocol.ids import PeerId
from shoal.protocol.messages import Lane
from shoal.protocol.net.channel import Channel, Handler

LaneOpener = Callable[[Lane], Awaitable[tuple[StreamReader, StreamWriter]]]
"""Opens one byte stream to the peer, on which the server has already proved its key. Called once per lane."""

RandomBytes = Callable[[int], bytes]
"""`os.urandom` in main, a seeded generator in tests."""


async def open_channel(
    identity: Identity, peer: PeerId, opener: LaneOpener, random_bytes: RandomBytes, timeout_s: float
) -> Channel:
    """Open all lanes to `peer` in parallel, prove our key on each, and return the channel.

    Raises:
        ConnectFailed: a lane did not open in time. AuthenticationFailed: the server's answer is not to our hello.
        Busy, Draining: the server takes no more lanes of ours. UnsupportedVersion, Malformed: not our protocol.
        Whatever `opener` raises.
    """
    raise NotImplementedError


class LaneServer:
    """Serves all lanes of a listener; one admission (half-open, total, per peer) for all of them."""

    def __init__(
        self, identity: Identity, handler: Handler, random_bytes: RandomBytes, log: logging.Logger | None = None
    ) -> None:
        raise NotImplementedError

    async def serve_lane(self, reader: StreamReader, writer: StreamWriter, proven_peer: PeerId | None) -> None:
        """Run one accepted stream until it ends; close it. Never raises but CancelledError.

        `proven_peer`: whom the layer below has authenticated (libp2p), None where only HELLO says so (direct, memory).
        On a proper end the client has closed first, as p2pd needs it.
        """
        raise NotImplementedError

    async def drain(self, grace_s: float) -> None:
        """Send DRAIN, refuse new lanes and requests, wait up to `grace_s` for requests in flight, then for the
        clients to close."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Cancel every handler and close every lane. Idempotent; returns when all `serve_lane` calls have ended."""
        raise NotImplementedError
