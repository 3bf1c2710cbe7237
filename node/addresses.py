"""Which of our addresses a record names: those that a stranger can use, and no more than fit it.

A node that listens everywhere (0.0.0.0) has no address of that name; libp2p has found out what this machine is called
on its networks, so the direct channel borrows those. Knows no sockets.
"""

from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from shoal.protocol.limits import MAX_ADDRESSES

MAX_EACH = MAX_ADDRESSES // 2
"""Half of a record's addresses for each kind of channel."""


def announced(direct: Sequence[str], multiaddrs: Sequence[str]) -> tuple[str, ...]:
    """Addresses for our records. direct: `host:port` as listened on; multiaddrs: libp2p's, interface by interface.

    Loopback is named only if there is nothing else: elsewhere it is another machine.
    """
    named = [address for listened in direct for address in _expand(listened, multiaddrs)]
    return (*_outside_first(named)[:MAX_EACH], *_outside_first(multiaddrs)[:MAX_EACH])


def for_own_token(multiaddrs: Sequence[str]) -> tuple[str, ...]:
    """Addresses for the token that this machine's own programs join by: loopback, which no DHCP changes, last."""
    outside = [address for address in multiaddrs if not _is_loopback(address)]
    inside = [address for address in multiaddrs if _is_loopback(address)][:1]
    return (*outside[: MAX_ADDRESSES - len(inside)], *inside)


def _expand(listened: str, multiaddrs: Iterable[str]) -> list[str]:
    host, _, port = listened.rpartition(":")
    if host not in ("0.0.0.0", "[::]"):
        return [listened]
    hosts = [_ip(multiaddr) for multiaddr in multiaddrs]
    return [f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}" for ip in dict.fromkeys(hosts) if ip]


def _outside_first(addresses: Sequence[str]) -> list[str]:
    outside = [address for address in addresses if not _is_loopback(address)]
    return outside or list(addresses)


def _is_loopback(address: str) -> bool:
    host = _ip(address) if address.startswith("/") else address.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False  # a host's name


def _ip(multiaddr: str) -> str:
    """The IP address in `/ip4/…` or `/ip6/…`; empty for other multiaddrs."""
    parts = multiaddr.split("/")
    return parts[2] if len(parts) > 2 and parts[1] in ("ip4", "ip6") else ""
