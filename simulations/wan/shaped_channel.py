"""The network where namespaces are not allowed: delay, loss and rate in the client's own channels, in user space.

What it can not do: its losses are late answers and never lost packets (TCP's repair is what a loss costs), handshakes
are one delay instead of several, and the directory and p2pd feel nothing. The output of a run says that this was used.
"""

import asyncio
from collections.abc import Callable, Sequence

from shoal.protocol.dtypes import DType
from shoal.protocol.errors import DeadlineExceeded, ShoalError
from shoal.protocol.frames import Buffer
from shoal.protocol.ids import PeerId
from shoal.protocol.messages import Dispatch
from shoal.protocol.net.channel import Channel, Connector, Reply, Traffic
from shoal.simulations.exact_timers import LOOPS, Timers
from shoal.simulations.wan.link import Link

PACKET_BYTES = 1448
"""What one TCP segment carries in Ethernet's 1500."""

FRAME_BYTES = 160
"""Of a request or reply beside its body: headers of frame, TLS, TCP and IP, by `shoal bench wire`'s sizes."""

MIN_REPAIR_S = 0.2
"""A lost packet that no later one reveals is sent again after TCP's shortest timeout on Linux, and one round trip."""

CONNECT_ROUND_TRIPS = 4
"""TCP, TLS 1.3, our handshake, and the challenge's own."""


class Ways:
    """A link's two directions: each carries one frame after another. The link may be another one from now on."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.num_bytes = {True: 0, False: 0}
        """What has crossed, by whether it was the way out."""
        self._free_at = {True: 0.0, False: 0.0}

    def delay_s(self, size_bytes: int, is_out: bool, now: float) -> float:
        """When a frame that is sent now will be there: behind those before it, at the link's rate, half a round trip
        later. now: seconds of one clock."""
        self.num_bytes[is_out] += size_bytes
        sent_at = now
        if self.link.rate_bytes_per_s is not None:
            sent_at = max(now, self._free_at[is_out]) + size_bytes / self.link.rate_bytes_per_s
            self._free_at[is_out] = sent_at
        return sent_at - now + self.link.rtt_ms / 2000


class ShapedConnector:
    """Implements `Connector`: another's channels, with a link's delays."""

    def __init__(
        self,
        inner: Connector,
        link: Link,
        draw: Callable[[], float],
        shared: Ways | None = None,
        timers: Timers = LOOPS,
    ) -> None:
        """draw: a number in [0, 1), for losses. shared: the one link that all channels go through; None: each has one
        of its own. timers: what delays are made with."""
        self._inner = inner
        self._link = link
        self._draw = draw
        self._shared = shared
        self._timers = timers

    async def connect(self, peer: PeerId, addresses: Sequence[str], timeout_s: float) -> Channel:
        """See `Connector.connect`."""
        link = self._shared.link if self._shared else self._link
        await self._timers.sleep(CONNECT_ROUND_TRIPS * link.rtt_ms / 1000)
        inner = await self._inner.connect(peer, addresses, timeout_s)
        return ShapedChannel(inner, link, self._draw, self._shared, self._timers)

    async def aclose(self) -> None:
        """See `Connector.aclose`."""
        await self._inner.aclose()


class ShapedChannel:
    """Implements `Channel`: half of a round trip before a request and half after its answer, or its error."""

    def __init__(
        self,
        inner: Channel,
        link: Link,
        draw: Callable[[], float],
        shared: Ways | None = None,
        timers: Timers = LOOPS,
    ) -> None:
        """See `ShapedConnector`."""
        self._inner = inner
        self._timers = timers
        self._ways = shared or Ways(link)
        self._draw = draw

    @property
    def peer(self) -> PeerId:
        return self._inner.peer

    @property
    def is_closed(self) -> bool:
        return self._inner.is_closed

    @property
    def is_draining(self) -> bool:
        return self._inner.is_draining

    @property
    def dtypes(self) -> frozenset[DType]:
        return self._inner.dtypes

    @property
    def traffic(self) -> Traffic:
        return self._inner.traffic

    def begin(self, message: Dispatch, body: Sequence[Buffer]) -> "asyncio.Future[Reply] | None":
        """See `Channel.begin`: never at once."""
        return None

    async def request(self, message: Dispatch, body: Sequence[Buffer]) -> Reply:
        """See `Channel.request`; the deadline counts from the arrival there."""
        await self._cross(message.body_size(), is_out=True)
        try:
            reply = await self._inner.request(message, body)
        except ShoalError:
            await self._cross(0, is_out=False)
            raise
        await self._cross(len(reply.body), is_out=False)
        return reply

    async def ping(self, timeout_s: float) -> float:
        """See `Channel.ping`."""
        started = self._timers.now_s()
        try:
            async with asyncio.timeout(timeout_s):
                await self._cross(0, is_out=True)
                await self._inner.ping(timeout_s)
                await self._cross(0, is_out=False)
        except TimeoutError as error:
            raise DeadlineExceeded(f"{self.peer} did not answer a ping in {timeout_s} s") from error
        return self._timers.now_s() - started

    async def aclose(self) -> None:
        """See `Channel.aclose`."""
        await self._inner.aclose()

    async def _cross(self, body_bytes: int, is_out: bool) -> None:
        size_bytes = body_bytes + FRAME_BYTES
        delay_s = self._ways.delay_s(size_bytes, is_out, self._timers.now_s())
        await self._timers.sleep(delay_s + self._repair_s(size_bytes))

    def _repair_s(self, size_bytes: int) -> float:
        """What the losses of a frame's packets cost: the worst of them, which may be lost again and again."""
        link = self._ways.link
        rtt_s, worst = link.rtt_ms / 1000, 0
        for _ in range(-(-size_bytes // PACKET_BYTES)):
            num_lost = 0
            while self._draw() < link.loss:
                num_lost += 1
            worst = max(worst, num_lost)
        return (2.0**worst - 1) * (MIN_REPAIR_S + rtt_s)
