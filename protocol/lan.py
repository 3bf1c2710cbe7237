"""How peers of a swarm say on a LAN where they are, in DNS-SD records, and how those are read (PROTOCOL.md §7.1).

Sans-IO. Whoever is on the LAN reads these records and can make them. So those of a private swarm say nothing to a
stranger, not even that two of them belong to one swarm: the peer's key is sealed under the directory secret with a new
nonce for each run. And what is read is never believed: it is a bootstrap address, whose key libp2p proves when it is
dialled and whose membership the handshake proves. Knows no sockets.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, ip_address

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from shoal.protocol.errors import InvalidRequest, RecordRejected
from shoal.protocol.identity import peer_id_of
from shoal.protocol.record_seal import NONCE_BYTES
from shoal.protocol.version import LAN_CONTEXT

SERVICE_TYPE = "_shoal._tcp.local."
"""RFC 6763: what is asked for on the LAN."""

MAX_LAN_PEERS = 64
"""Announcements that we look at: a school's computer room. More are passed over; a few lead to all others."""

MAX_LAN_ADDRESSES = 4
"""Addresses of one announcement that are dialled: cards of one machine on our networks."""

KEY_BYTES = 32
SEALED_BYTES = NONCE_BYTES + KEY_BYTES + 16

LAN_NETWORKS = tuple(
    IPv4Network(network) for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16")
)
"""RFC 1918 and RFC 3927: what no router passes on. On other addresses we neither announce nor ask nor believe."""

Txt = Mapping[bytes, bytes | None]
"""The keys and values of a TXT record."""


@dataclass(frozen=True, slots=True)
class NetworkCard:
    """One IPv4 address of this machine. `network`: `192.168.1.7/24`; `flags`: of the card, as the system says them."""

    network: IPv4Interface
    flags: frozenset[str]


@dataclass(frozen=True, slots=True)
class LanSwarm:
    """Whose announcements we make and understand. `secret`: the directory secret; None: an open swarm."""

    model_root: bytes
    secret: bytes | None = field(default=None, repr=False)

    def announce(self, public_key: bytes, port: int, nonce: bytes) -> dict[str, bytes]:
        """The TXT record of a peer whose libp2p listens at `port`. `nonce`: 12 random bytes, for a private swarm."""
        if self.secret is None:
            return {"v": b"1", "k": public_key, "m": self.model_root}
        if len(nonce) != NONCE_BYTES:
            raise InvalidRequest(f"a nonce has {NONCE_BYTES} bytes, this one {len(nonce)}")
        return {"v": b"1", "s": nonce + self._cipher(self.secret).encrypt(nonce, public_key, _port_bytes(port))}

    def read(self, txt: Txt, addresses: Sequence[str], port: int, own: Sequence[IPv4Interface]) -> tuple[str, ...]:
        """The multiaddrs at which a peer of this swarm says it is. `own`: our addresses on the networks that we use.

        Raises:
            RecordRejected: another swarm or version, or nothing that we would dial.
        """
        if not 0 < port < 65_536:
            raise RecordRejected(f"a LAN announcement with port {port}")
        key = self._key_in(txt, port)
        hosts = [host for host in addresses if _is_near(host, own)]
        if not hosts:
            raise RecordRejected("a LAN announcement without an address on our networks")
        return tuple(f"/ip4/{host}/tcp/{port}/p2p/{peer_id_of(key)}" for host in hosts[:MAX_LAN_ADDRESSES])

    def _key_in(self, txt: Txt, port: int) -> bytes:
        if txt.get(b"v") != b"1":
            raise RecordRejected("a LAN announcement of another version")
        if self.secret is None:
            key, root = txt.get(b"k"), txt.get(b"m")
            if root != self.model_root or key is None or len(key) != KEY_BYTES:
                raise RecordRejected("a LAN announcement of another swarm")
            return key
        sealed = txt.get(b"s")
        if sealed is None or len(sealed) != SEALED_BYTES:
            raise RecordRejected("a LAN announcement of another swarm")
        nonce, text = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        try:
            return self._cipher(self.secret).decrypt(nonce, text, _port_bytes(port))
        except InvalidTag as error:
            raise RecordRejected("a LAN announcement of another swarm") from error

    @staticmethod
    def _cipher(secret: bytes) -> ChaCha20Poly1305:
        return ChaCha20Poly1305(blake3(LAN_CONTEXT, key=secret).digest())


def lan_cards(cards: Iterable[NetworkCard], host: str) -> tuple[IPv4Interface, ...]:
    """Those of our addresses on which a program that listens at `host` uses the LAN; `0.0.0.0` is all of them.

    Only private IPv4 networks with multicast; no loopback, and no tunnel: a VPN's other end is not our neighbour.
    """
    found = [card.network for card in cards if _is_lan(card)]
    return tuple(each for each in dict.fromkeys(found) if host in ("0.0.0.0", str(each.ip)))


def _is_lan(card: NetworkCard) -> bool:
    is_usable = {"up", "multicast"} <= card.flags and not {"loopback", "pointopoint"} & card.flags
    return is_usable and any(card.network.ip in network for network in LAN_NETWORKS)


def _is_near(host: str, own: Sequence[IPv4Interface]) -> bool:
    """Whether this is a machine on one of our networks; nobody makes us dial another one by an announcement."""
    try:
        address = ip_address(host)
    except ValueError:
        return False
    if not isinstance(address, IPv4Address):
        return False
    return any(_is_host_of(address, card.network) for card in own)


def _is_host_of(address: IPv4Address, network: IPv4Network) -> bool:
    is_edge = network.prefixlen < 31 and address in (network.network_address, network.broadcast_address)
    return address in network and not is_edge


def _port_bytes(port: int) -> bytes:
    return port.to_bytes(2, "big")
