"""The `libp2p` back end of `Channel`: each lane is one persistent raw stream of p2pd.

For peers that no direct connection reaches (NAT, relays). libp2p has proved both sides' keys by TLS 1.3 before a
byte of ours travels; HELLO is checked against that. An exchange of 14 KiB costs 0.1 ms more than over `direct`; with a
stream per request it would cost 1.2 ms more. Knows no requests: `multiplex.py` does.
"""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import Sequence

from shoal.protocol.errors import ConnectFailed
from shoal.protocol.identity import Identity
from shoal.protocol.ids import PeerId
from shoal.protocol.membership import IsRevoked, MemberGate, Membership
from shoal.protocol.messages import Lane
from shoal.protocol.net import p2pd_control
from shoal.protocol.net.channel import ClientCount, Handler, PieceChannel, PieceHandler, no_pieces
from shoal.protocol.net.multiplex import LaneServer, RandomBytes, open_channel
from shoal.protocol.net.p2pd import P2pd
from shoal.protocol.net.throttle import Throttle
from shoal.protocol.version import LIBP2P_PROTOCOL_ID


class Libp2pConnector:
    """Opens channels through our p2pd."""

    def __init__(
        self,
        identity: Identity,
        p2pd: P2pd,
        random_bytes: RandomBytes,
        membership: Membership | None = None,
        throttle: Throttle | None = None,
    ) -> None:
        """throttle: as for `DirectConnector`."""
        self._membership = membership
        self._throttle = throttle
        self._identity = identity
        self._control_path = p2pd.control_path
        self._random_bytes = random_bytes
        self._channels: set[PieceChannel] = set()

    async def connect(self, peer: PeerId, addresses: Sequence[str], timeout_s: float) -> PieceChannel:
        """Open a channel to `peer`; addresses that are no multiaddrs are left to other connectors.

        Raises:
            ConnectFailed: no address answered in time. AuthenticationFailed: somebody else lives there.

        Cancellation: p2pd may stay connected to the peer; no stream stays open.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await p2pd_control.dial(self._control_path, peer, [a for a in addresses if a.startswith("/")])
        except TimeoutError as error:
            raise ConnectFailed(f"{peer} did not answer within {timeout_s:.1f} s") from error

        async def open_lane(lane: Lane) -> tuple[StreamReader, StreamWriter]:
            return await p2pd_control.open_stream(self._control_path, peer, LIBP2P_PROTOCOL_ID)

        remaining_s = max(0.0, deadline - asyncio.get_running_loop().time())
        channel = await open_channel(
            self._identity, peer, open_lane, self._random_bytes, remaining_s, self._membership, self._throttle
        )
        self._channels = {open_one for open_one in self._channels if not open_one.is_closed} | {channel}
        return channel

    async def aclose(self) -> None:
        """Close every channel that is still open."""
        for channel in self._channels:
            await channel.aclose()
        self._channels.clear()


async def listen_libp2p(
    identity: Identity,
    p2pd: P2pd,
    handler: Handler,
    random_bytes: RandomBytes,
    throttle: Throttle | None = None,
    gate: MemberGate | None = None,
    pieces: PieceHandler = no_pieces,
) -> "Libp2pListener":
    """Serve `handler` to every peer that opens our protocol's streams.

    Raises:
        ConnectFailed: p2pd has ended, or there is a listener already.
    """
    listener = Libp2pListener(identity, p2pd, handler, random_bytes, throttle, gate, pieces)
    await listener.start()
    return listener


class Libp2pListener:
    """Serves the lanes that peers open through p2pd. Make it with `listen_libp2p`."""

    def __init__(
        self,
        identity: Identity,
        p2pd: P2pd,
        handler: Handler,
        random_bytes: RandomBytes,
        throttle: Throttle | None = None,
        gate: MemberGate | None = None,
        pieces: PieceHandler = no_pieces,
    ) -> None:
        self._lanes = LaneServer(identity, handler, random_bytes, throttle=throttle, gate=gate, pieces=pieces)
        self._streams = p2pd_control.StreamServer(p2pd.control_path, LIBP2P_PROTOCOL_ID)
        self._addresses = p2pd.addresses

    async def start(self) -> None:
        """Begin to listen."""
        await self._streams.start(self._lanes.serve_lane)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs that end in `/p2p/<our peer id>`."""
        return self._addresses

    def clients(self) -> list[ClientCount]:
        """See `GatedListener.clients`."""
        return self._lanes.clients()

    def suspend(self, grace_s: float) -> None:
        """See `GatedListener.suspend`."""
        self._lanes.suspend(grace_s)

    def resume(self) -> None:
        """See `GatedListener.resume`."""
        self._lanes.resume()

    def expel(self, is_revoked: IsRevoked) -> int:
        """See `GatedListener.expel`."""
        return self._lanes.expel(is_revoked)

    async def drain(self, grace_s: float) -> None:
        """See `Listener.drain`."""
        await self._streams.stop()
        await self._lanes.drain(grace_s)

    async def aclose(self) -> None:
        """See `Listener.aclose`. p2pd goes on."""
        await self._streams.stop()
        await self._lanes.aclose()
