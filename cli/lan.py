"""Who of our swarm is on the LAN, for `shoal peers` where no node runs."""

import os

from shoal.protocol.control import Peer, PeerRole, Peers


async def announced_peers() -> Peers | None:
    """Peers of the swarm of our token that say they are on the LAN; None: no token, no LAN, or nobody says so.

    Raises:
        InvalidRequest: the token is damaged or open to others.
    """
    from shoal.cli.swarms import chosen_swarm, stored_token
    from shoal.protocol.errors import NetworkError
    from shoal.protocol.invite import decode_invite
    from shoal.protocol.lan import LanSwarm
    from shoal.protocol.net.discovery import first_addresses
    from shoal.protocol.net.mdns import lan_discovery

    token = stored_token(chosen_swarm(None))
    discover = lan_discovery("0.0.0.0", os.urandom) if token is not None else None
    if token is None or discover is None:
        return None
    invite = decode_invite(token)
    secret = invite.membership.directory_secret if invite.membership else None
    try:
        async with discover(LanSwarm(invite.model_root, secret)) as source:
            found = await first_addresses(source)
    except NetworkError:
        return None
    return Peers(tuple(_peers(found))) if found else None


def _peers(addresses: list[str]) -> list[Peer]:
    by_peer: dict[str, list[str]] = {}
    for address in addresses:
        by_peer.setdefault(address.rpartition("/p2p/")[2], []).append(address)
    return [Peer(peer, PeerRole.ANNOUNCED, tuple(found)) for peer, found in sorted(by_peer.items())]
