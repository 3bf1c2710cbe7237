"""Discovery by multicast DNS: announce ourselves on the LAN and hear who else is there (RFC 6762, RFC 6763).

The only module that knows zeroconf. Whose announcements they are, and which addresses are dialled, says `lan.py`.
Speaks on private IPv4 networks alone, under a name that is new for each run.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING

from shoal.protocol.errors import NetworkError, RecordRejected
from shoal.protocol.lan import MAX_LAN_PEERS, SERVICE_TYPE, LanSwarm, lan_cards
from shoal.protocol.net.discovery import Discover, Discovery
from shoal.protocol.net.local_ports import network_cards
from shoal.protocol.net.task_set import TaskSet
from shoal.protocol.record_seal import NONCE_BYTES

if TYPE_CHECKING:
    from zeroconf import ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncZeroconf

RESOLVE_TIMEOUT_MS = 3000
"""For address and TXT of a name that was heard; they mostly came with it."""

NAME_BYTES = 6
"""Random bytes of our name on the LAN: two of a thousand machines share one with a probability of 2e-9."""

_log = logging.getLogger(__name__)


def lan_discovery(host: str, random_bytes: Callable[[int], bytes]) -> Discover | None:
    """Discovery for a program that listens at `host` (`0.0.0.0`: everywhere); None: it has no LAN."""
    own = lan_cards(network_cards(), host)
    return partial(mdns, own=own, random_bytes=random_bytes) if own else None


@asynccontextmanager
async def mdns(
    swarm: LanSwarm, own: Sequence[IPv4Interface], random_bytes: Callable[[int], bytes]
) -> AsyncIterator[Discovery]:
    """Listen for peers of `swarm` on the networks of `own`; say goodbye at the end of the `with`.

    Raises:
        NetworkError: this machine lets nobody use multicast DNS.
    """
    from zeroconf import Error, IPVersion
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

    _silence()
    try:
        zeroconf = AsyncZeroconf(interfaces=[str(each.ip) for each in own], ip_version=IPVersion.V4Only)
    except (OSError, Error) as error:
        raise NetworkError(f"no multicast DNS on this machine: {error}") from error
    source = MdnsDiscovery(zeroconf, swarm, own, random_bytes)
    browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE_TYPE, handlers=[source.on_change])
    try:
        yield source
    finally:
        await browser.async_cancel()
        await source.aclose()
        await zeroconf.async_close()


class MdnsDiscovery:
    """Implements `Discovery`. Make it with `mdns`.

    Limits: `MAX_LAN_PEERS` names; further ones are passed over until one of those says goodbye or expires.
    """

    def __init__(
        self,
        zeroconf: "AsyncZeroconf",
        swarm: LanSwarm,
        own: Sequence[IPv4Interface],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._zeroconf = zeroconf
        self._swarm = swarm
        self._own = own
        self._random_bytes = random_bytes
        self._peers: dict[str, tuple[str, ...]] = {}
        self._own_name = ""
        self._changed = asyncio.Event()
        self._resolving = TaskSet()

    async def addresses(self) -> AsyncGenerator[str, None]:
        """See `Discovery.addresses`."""
        seen: set[str] = set()
        while True:
            changed = self._changed
            known = [address for peer in self._peers.values() for address in peer]
            for address in known:
                if address not in seen:
                    seen.add(address)
                    yield address
            seen &= set(known)  # who leaves and comes back is new, and the set stays small
            await changed.wait()

    async def announce(self, public_key: bytes, port: int) -> None:
        """See `Discovery.announce`."""
        from zeroconf.asyncio import AsyncServiceInfo

        name = f"shoal-{self._random_bytes(NAME_BYTES).hex()}"
        self._own_name = f"{name}.{SERVICE_TYPE}"
        properties = self._swarm.announce(public_key, port, self._random_bytes(NONCE_BYTES))
        info = AsyncServiceInfo(
            SERVICE_TYPE,
            self._own_name,
            port=port,
            properties=properties,
            server=f"{name}.local.",  # not this machine's name, which may be a person's
            addresses=[each.ip.packed for each in self._own],
        )
        await (await self._zeroconf.async_register_service(info))

    def on_change(self, zeroconf: "Zeroconf", service_type: str, name: str, state_change: "ServiceStateChange") -> None:
        """zeroconf heard of a name; called in the loop."""
        from zeroconf import ServiceStateChange

        if state_change is ServiceStateChange.Removed:
            if self._peers.pop(name, None):
                self._tell()
        elif name != self._own_name and (name in self._peers or len(self._peers) < MAX_LAN_PEERS):
            if name not in self._peers:
                self._peers[name] = ()
            if len(self._resolving) < MAX_LAN_PEERS:
                self._resolving.start(self._resolve(name), "LAN peer")

    async def aclose(self) -> None:
        """Ask for no more."""
        await self._resolving.aclose()

    async def _resolve(self, name: str) -> None:
        from zeroconf import Error, IPVersion
        from zeroconf.asyncio import AsyncServiceInfo

        addresses: tuple[str, ...] = ()
        try:
            info = AsyncServiceInfo(SERVICE_TYPE, name)
            if await info.async_request(self._zeroconf.zeroconf, RESOLVE_TIMEOUT_MS):
                hosts = info.parsed_addresses(IPVersion.V4Only)
                addresses = self._swarm.read(info.properties, hosts, info.port or 0, self._own)
        except (RecordRejected, Error) as error:
            _log.debug("an announcement on the LAN was passed over: %s", type(error).__name__)
        if name not in self._peers:
            return  # it has said goodbye meanwhile
        if addresses:
            self._peers[name] = addresses
            self._tell()
        else:
            del self._peers[name]

    def _tell(self) -> None:
        """Wake who waits; who comes later waits for the next."""
        self._changed.set()
        self._changed = asyncio.Event()


def _silence() -> None:
    """zeroconf warns on the logger of its name of every packet that it could not send; nobody asked for it."""
    logger = logging.getLogger("zeroconf")
    logger.setLevel(logging.CRITICAL)
