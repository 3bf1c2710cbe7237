"""What this machine's network is like from inside: its addresses, and whether a port is free."""

import socket
from collections.abc import Iterator
from ipaddress import IPv4Interface

import psutil

from shoal.protocol.lan import NetworkCard


def is_port_free(host: str, port: int) -> bool:
    """Whether we could listen there now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


MDNS_PORT = 5353
"""RFC 6762 §3; every program that speaks it listens there, side by side."""


def why_no_mdns() -> str:
    """Why we could not listen for multicast DNS; empty if we could."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            if hasattr(socket, "SO_REUSEPORT"):
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind(("", MDNS_PORT))
        except OSError as error:
            return f"UDP port {MDNS_PORT}: {error.strerror or error}"
    return ""


def local_addresses() -> tuple[str, ...]:
    """The IP addresses of all network cards."""
    found = psutil.net_if_addrs().values()
    return tuple(each.address for card in found for each in card if each.family in (socket.AF_INET, socket.AF_INET6))


def network_cards() -> Iterator[NetworkCard]:
    """Every IPv4 address of this machine, with its network and the flags of its card."""
    stats = psutil.net_if_stats()
    for name, addresses in psutil.net_if_addrs().items():
        flags = frozenset(stats[name].flags.split(",")) if name in stats else frozenset()
        for each in addresses:
            if each.family == socket.AF_INET and each.netmask:
                yield NetworkCard(IPv4Interface(f"{each.address}/{each.netmask}"), flags)
