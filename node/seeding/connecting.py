"""How a node reaches others to take pieces: whether there are any, and directly where that works, else through libp2p
and its relays."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from shoal.experts.pieces.disk import FolderDisk
from shoal.node.holdings.joining import Place
from shoal.node.seeding.peers import LOOK_S, Peers, Wanted, nothing_given
from shoal.protocol.errors import ConnectFailed
from shoal.protocol.identity import Identity
from shoal.protocol.ids import PeerId
from shoal.protocol.net.channel import PieceChannel, PieceConnector
from shoal.protocol.net.direct import DirectConnector
from shoal.protocol.net.directory import Directory
from shoal.protocol.net.entry import Entry
from shoal.protocol.net.libp2p import Libp2pConnector
from shoal.protocol.net.throttle import Throttle

DIRECT_SHARE = 0.4
"""Of the time to connect: whoever does not answer directly by then is behind a router."""


class EitherConnector:
    """Implements `PieceConnector` over two others."""

    def __init__(self, direct: PieceConnector, relayed: PieceConnector) -> None:
        self._direct = direct
        self._relayed = relayed

    async def connect(self, peer: PeerId, addresses: Sequence[str], timeout_s: float) -> PieceChannel:
        """See `Connector.connect`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        try:
            return await self._direct.connect(peer, addresses, timeout_s * DIRECT_SHARE)
        except ConnectFailed:
            return await self._relayed.connect(peer, addresses, deadline - loop.time())

    async def aclose(self) -> None:
        """See `Connector.aclose`."""
        await asyncio.gather(self._direct.aclose(), self._relayed.aclose())


def connector_of(identity: Identity, entry: Entry, throttle: Throttle) -> PieceConnector:
    """A node's own way to others, within its owner's limits on bytes."""
    return EitherConnector(
        DirectConnector(identity, os.urandom, entry.membership, throttle),
        Libp2pConnector(identity, entry.p2pd, os.urandom, entry.membership, throttle),
    )


async def is_first(place: Place, model_root: bytes) -> bool:
    """Whether nobody but us is in the directory: then there is nobody to wait for."""
    found = await place.directory.lookup(model_root, place.shape.layers)
    return all(record.peer == place.me.peer for records in found.values() for record in records)


@asynccontextmanager
async def peers_of(
    wanted: Wanted,
    directory: Directory,
    connector: PieceConnector,
    draw: Callable[[], float],
    disk: FolderDisk | None = None,
    look_s: float = LOOK_S,
    given_bytes: Callable[[], int] = nothing_given,
) -> AsyncIterator[Peers]:
    """The swarm as a source of pieces. Arguments: as of `Peers`. Closes the connector too."""
    peers = Peers(wanted, directory, connector, draw, given_bytes, look_s=look_s, disk=disk)
    try:
        yield peers
    finally:
        await peers.aclose()
        await connector.aclose()
