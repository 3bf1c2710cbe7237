"""The way into a swarm, for nodes and clients alike: one p2pd under our identity, and the directory it leads to.

Knows the words a user gives to `--join` (multiaddrs, an invite token); knows no experts and no channels.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass

from shoal.protocol.errors import ConnectFailed, InvalidRequest, NetworkError, ShoalError, WrongModel
from shoal.protocol.identity import Identity
from shoal.protocol.invite import PRIVATE_PREFIX, TOKEN_PREFIX, decode_invite, is_token, memberships
from shoal.protocol.lan import LanSwarm
from shoal.protocol.membership import Membership
from shoal.protocol.net.directory import Directory, RevocationBoard
from shoal.protocol.net.discovery import Discover, Discovery, first_addresses
from shoal.protocol.net.hivemind_dht import HivemindDirectory, join_dht
from shoal.protocol.net.p2pd import P2pd, P2pdSettings, start_p2pd
from shoal.protocol.net.task_set import TaskSet
from shoal.protocol.record_seal import RecordSeal

MEETING_PAUSES_S = (0.0, 2.0, 10.0, 30.0)
"""Before each attempt to meet a peer that was announced; it may be starting, or busy."""

MAX_MEETINGS = 32
"""Peers that we try to meet at a time; those that are left out meet us."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """What a peer of a swarm has. `board`: of use in a private swarm alone. `membership`: of a private swarm; None: the
    swarm is open."""

    p2pd: P2pd
    directory: Directory
    board: RevocationBoard
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
    discover: Discover | None = None,
) -> AsyncIterator[Entry]:
    """Start p2pd and join the directory through the peers of `join`, else through those that `discover` finds; a node
    that finds nobody is the first peer of a new swarm.

    `clock`: Unix time in seconds. `is_client`: read the directory, store nothing for others. `membership`: for a
    founder, who has no token to join by. `discover`: where to look for peers (the LAN); a node announces itself there
    and meets who appears later. Leaves the directory and ends p2pd at the end of the `with`.

    Raises:
        InvalidRequest, WrongModel: `join` is wrong. AddressInUse: the libp2p port is taken. ConnectFailed: no peer of
        `join` answered, or a client has none and found none.
    """
    addresses = bootstrap_addresses(join, model_root)
    member = membership_of(join, membership)
    seal = RecordSeal(member.directory_secret if member else None)
    async with AsyncExitStack() as stack:
        p2pd = await start_p2pd(identity, settings)
        stack.push_async_callback(p2pd.aclose)

        async def join_through(peers: Sequence[str]) -> HivemindDirectory:
            joined = await join_dht(
                p2pd, identity, peers, clock, is_client=is_client, membership=member, model_root=model_root
            )
            stack.push_async_callback(joined.aclose)
            return joined

        found = None
        if discover is None:
            directory = await join_through(addresses)
        else:
            opening = discover(LanSwarm(model_root, seal.secret))
            directory, found = await _join_or_discover(stack, join_through, addresses, opening, is_client)
        if found is not None and not is_client:
            tasks = TaskSet()
            stack.push_async_callback(tasks.aclose)
            tasks.start(_announce(found, identity, p2pd), "LAN announcement")
            tasks.start(_meet_all(found, directory, tasks), "LAN meetings")
        yield Entry(p2pd, directory, directory, member)


_JoinThrough = Callable[[Sequence[str]], Awaitable[HivemindDirectory]]


async def _join_or_discover(
    stack: AsyncExitStack,
    join_through: _JoinThrough,
    addresses: Sequence[str],
    opening: AbstractAsyncContextManager[Discovery],
    is_client: bool,
) -> tuple[HivemindDirectory, Discovery | None]:
    """Join through the addresses, else through whom discovery finds; a client that needs it not does not open it."""
    failure: ConnectFailed | None = None
    directory: HivemindDirectory | None = None
    try:
        directory = await join_through(addresses) if addresses else None
    except ConnectFailed as error:
        failure = error
    if directory is not None and is_client:
        return directory, None
    source = None
    try:
        source = await stack.enter_async_context(opening)
    except NetworkError as error:
        _log.warning("nobody on the LAN finds us: %s", error)
        failure = failure or ConnectFailed(str(error))
    may_found = not (is_client or addresses)
    return directory or await _join_found(join_through, source, failure, may_found), source


async def _join_found(
    join_through: _JoinThrough, source: Discovery | None, failure: ConnectFailed | None, may_found: bool
) -> HivemindDirectory:
    """Join through who is found; a node without an address to join by begins a swarm where nobody answers."""
    peers = await first_addresses(source) if source is not None else []
    if peers:
        try:
            return await join_through(peers)
        except ConnectFailed as error:
            failure = error
    if may_found:
        return await join_through(())
    if failure is None:
        raise ConnectFailed("nobody of this swarm answers on this LAN")
    raise ConnectFailed(f"{failure}; and nobody of this swarm answers on this LAN") from failure


async def _announce(source: Discovery, identity: Identity, p2pd: P2pd) -> None:
    """Say where our libp2p is; its addresses end in `/tcp/PORT/p2p/ID`."""
    ports = [int(found[1]) for address in p2pd.addresses if (found := re.search(r"/tcp/(\d+)", address))]
    try:
        await source.announce(identity.public_key, ports[0])
    except ShoalError as error:
        _log.warning("nobody on the LAN finds us: %s", error)


async def _meet_all(source: Discovery, directory: HivemindDirectory, tasks: TaskSet) -> None:
    """Get to know everybody who appears, so that swarms that began apart become one."""
    async with aclosing(source.addresses()) as addresses:
        async for address in addresses:
            if len(tasks) < MAX_MEETINGS:
                tasks.start(_meet(directory, address), "LAN meeting")


async def _meet(directory: HivemindDirectory, address: str) -> None:
    for pause_s in MEETING_PAUSES_S:
        await asyncio.sleep(pause_s)
        try:
            await directory.meet(address)
            return
        except ShoalError as error:
            _log.debug("%s was announced and does not answer: %s", address, type(error).__name__)
