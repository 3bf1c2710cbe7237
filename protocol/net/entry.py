"""The way into a swarm, for nodes and clients alike: one p2pd under our identity, and the directory it leads to.

Knows the words a user gives to `--join` (multiaddrs, an invite token); knows no experts and no channels.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from shoal.protocol.errors import InvalidRequest, WrongModel
from shoal.protocol.identity import Identity
from shoal.protocol.invite import PRIVATE_PREFIX, TOKEN_PREFIX, decode_invite, is_token, memberships
from shoal.protocol.membership import Membership
from shoal.protocol.net.directory import Directory
from shoal.protocol.net.hivemind_dht import join_dht
from shoal.protocol.net.p2pd import P2pd, P2pdSettings, start_p2pd
from shoal.protocol.record_seal import RecordSeal


@dataclass(frozen=True, slots=True)
class Entry:
    """What a peer of a swarm has. `membership`: of a private swarm; None: the swarm is open."""

    p2pd: P2pd
    directory: Directory
    membership: Membership | None = None


def bootstrap_addresses(join: Sequence[str], model_root: bytes) -> list[str]:
    """The multiaddrs that the words of `--join` stand for.

    Raises:
        InvalidRequest: neither a multiaddr nor a token. WrongModel: a token for another model.
    """
    addresses: list[str] = []
    for word in join:
        if is_token(word):
            invite = decode_invite(word)
            if invite.model_root != model_root:
                raise WrongModel(
                    f"the token is for model {invite.model_root.hex()[:16]}…, this is {model_root.hex()[:16]}…"
                )
            addresses.extend(invite.bootstrap)
        elif word.startswith("/"):
            addresses.append(word)
        else:
            raise InvalidRequest(
                "what was given to --join is neither an address (/ip4/…/tcp/…/p2p/…) nor a token"
                f" ({PRIVATE_PREFIX}… or {TOKEN_PREFIX}…)"
            )
    return addresses


def membership_of(join: Sequence[str], own: Membership | None) -> Membership | None:
    """Which private swarm the words of `--join` and a membership of our own lead to; None: an open one.

    Raises:
        InvalidRequest: into several.
    """
    found = [*memberships(join), *([own] if own else [])]
    if len({each.founder_key for each in found}) > 1:
        raise InvalidRequest("tokens of different swarms: join one at a time")
    return found[-1] if found else None


@asynccontextmanager
async def enter_swarm(
    identity: Identity,
    join: Sequence[str],
    model_root: bytes,
    clock: Callable[[], float],
    settings: P2pdSettings | None = None,
    *,
    is_client: bool = False,
    membership: Membership | None = None,
) -> AsyncIterator[Entry]:
    """Start p2pd and join the directory through the peers of `join`; none: the first peer of a new swarm.

    `clock`: Unix time in seconds. `is_client`: read the directory, store nothing for others. `membership`: for a
    founder, who has no token to join by. Leaves the directory and ends p2pd at the end of the `with`.

    Raises:
        InvalidRequest, WrongModel: `join` is wrong. AddressInUse: the libp2p port is taken. ConnectFailed: no peer of
        `join` answered.
    """
    addresses = bootstrap_addresses(join, model_root)
    member = membership_of(join, membership)
    seal = RecordSeal(member.directory_secret if member else None)
    p2pd = await start_p2pd(identity, settings)
    try:
        directory = await join_dht(p2pd, identity, addresses, clock, is_client=is_client, seal=seal)
        try:
            yield Entry(p2pd, directory, member)
        finally:
            await directory.aclose()
    finally:
        await p2pd.aclose()
