"""The directory on hivemind's Kademlia DHT: who is near a model's name keeps the records of its holders.

A `DHTNode` in our own loop, over our own p2pd, says which peers are nearest (`dht_keepers.py`); with those we speak
SYNC (`dht_roster.py`). This module joins, leaves and finds back. Knows no experts and no channels.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from shoal.protocol import limits
from shoal.protocol.errors import (
    ChannelClosed,
    ConnectFailed,
    DeadlineExceeded,
    InvalidRequest,
    NetworkError,
    RecordRejected,
)
from shoal.protocol.herald import Herald
from shoal.protocol.identity import Identity
from shoal.protocol.ids import LayerId, PeerId
from shoal.protocol.membership import Membership
from shoal.protocol.net.dht_dialing import dial_any, owner_of_address
from shoal.protocol.net.dht_keepers import Keepers
from shoal.protocol.net.dht_roster import Roster
from shoal.protocol.net.dht_sync import SyncPort
from shoal.protocol.net.directory import Posted
from shoal.protocol.net.hivemind_loader import load_hivemind_in_thread
from shoal.protocol.net.p2pd import P2pd
from shoal.protocol.record_keeper import RecordKeeper
from shoal.protocol.records import HolderRecord, NodeRecord
from shoal.protocol.revocation_list import RevocationList

if TYPE_CHECKING:
    from hivemind.dht.node import DHTNode

WAIT_TIMEOUT_S = 1.2
"""A silent peer costs this once per search and is then left alone for a while; hivemind's 3 s made lookups crawl."""

LOOKUP_TIMEOUT_S = 10.0
"""For a look at a roster; what has been found by then is returned."""

PUBLISH_TIMEOUT_S = 20.0
"""For all keepers to be told; half of the time until the next pulse."""

CLOSE_TIMEOUT_S = 1.0
"""For p2pd to take our handlers away; it is about to end anyway."""

Clock = Callable[[], float]
"""Unix time in seconds."""


async def join_dht(
    p2pd: P2pd,
    identity: Identity,
    initial_peers: Sequence[str],
    clock: Clock,
    *,
    is_client: bool = False,
    membership: Membership | None = None,
    model_root: bytes = b"",
) -> "HivemindDirectory":
    """Join the DHT through `initial_peers` (multiaddrs with /p2p/ID), or start one where there are none.

    `is_client`: read and publish, but keep nothing for others. `membership`: of a private swarm, whose revocation
    lists the keepers of `model_root` pass on. Raises:
        ConnectFailed: none of `initial_peers` answers.

    Cancellation: p2pd may stay connected to the initial peers.
    """
    await load_hivemind_in_thread()
    from hivemind.dht.node import DHTNode
    from hivemind.dht.routing import DHTID

    from shoal.protocol.net.hivemind_guard import install_guard, node_id_of

    keeper = RecordKeeper(clock, identity.peer, membership)
    reached = await dial_any(p2pd, initial_peers)
    install_guard(keeper.seal)
    node = await DHTNode.create(
        p2p=p2pd.p2p,
        node_id=DHTID.from_bytes(node_id_of(p2pd.p2p.peer_id.to_bytes())),
        initial_peers=reached,
        wait_timeout=WAIT_TIMEOUT_S,
        client_mode=is_client,
        # hivemind's clocks must agree within 3 s, ours within 60 (records carry their own times)
        ensure_bootstrap_success=False,
        strict=False,
        # no values, so no caches
        cache_locally=False,
        cache_nearest=0,
        cache_on_store=False,
        cache_refresh_before_expiry=0,
        reuse_get_requests=False,
    )
    port = SyncPort(p2pd.p2p, keeper, WAIT_TIMEOUT_S)
    voucher = membership.vouch(identity.public_key) if membership is not None else b""
    herald = Herald(identity, clock, voucher)
    directory = HivemindDirectory(node, p2pd, herald, tuple(initial_peers), clock, keeper, port)
    try:
        if not is_client:
            await port.open()
        if model_root:
            directory.roster(model_root)
        await directory.rejoin_if_alone()
    except BaseException:
        await directory.aclose()
        raise
    return directory


class HivemindDirectory:
    """The Directory of a swarm of strangers. Made by `join_dht`."""

    def __init__(
        self,
        node: "DHTNode",
        p2pd: P2pd,
        herald: Herald,
        initial_peers: tuple[str, ...],
        clock: Clock,
        keeper: RecordKeeper,
        port: SyncPort,
    ) -> None:
        self._node = node
        self._p2pd = p2pd
        self._herald = herald
        self._initial_peers = initial_peers
        self._clock = clock
        self._keeper = keeper
        self._port = port
        self._rosters: dict[bytes, Roster] = {}

    @property
    def num_neighbours(self) -> int:
        """DHT nodes that we know and that answered when we last asked; 0: we are alone."""
        return len(self._node.protocol.routing_table.peer_id_to_uid)

    def roster(self, model_root: bytes) -> Roster:
        """Where the holders of a model are found."""
        if model_root not in self._rosters:
            name, keeper = self._keeper.seal.name(model_root), self._keeper
            self._rosters[model_root] = Roster(
                name, self._keeper.us, Keepers(self._node, name), self._port, keeper, self._clock
            )
        return self._rosters[model_root]

    async def publish(self, record: NodeRecord) -> None:
        """See `Directory.publish`: the record to up to four keepers, or a pulse to those that have it.

        Raises:
            NetworkError: nobody took it. ConnectFailed: we are alone and no bootstrap peer answers.
            InvalidRequest: it is not ours, or over a limit.
        """
        said, roster = self._herald.say(record), self.roster(record.model_root)
        self._keeper.book.add(said.data, self._keeper.us, self._clock(), said.index, said.pulse)
        await self.rejoin_if_alone()
        if not self.num_neighbours:
            return
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                num_kept = await roster.tell(said)
        except TimeoutError as error:
            raise DeadlineExceeded(f"our record was not stored in {PUBLISH_TIMEOUT_S:.0f} s") from error
        if not num_kept:
            raise NetworkError(
                f"our record was taken by none of {self.num_neighbours} peers;"
                " is this machine's clock right?"  # records with other times than theirs are what peers refuse
            )

    async def lookup(
        self, model_root: bytes, layers: Sequence[LayerId], max_age_s: float = 0.0
    ) -> dict[LayerId, list[HolderRecord]]:
        """See `Directory.lookup`. What no keeper answers for is as we knew it, until it expires.

        Raises:
            ConnectFailed: we are alone and no bootstrap peer answers.
        """
        await self.rejoin_if_alone()
        roster = self.roster(model_root)
        if self.num_neighbours and not roster.is_fresh(max_age_s):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                    await roster.look()
        return self._keeper.book.lookup(model_root, layers, self._clock())

    async def post(self, revocations: RevocationList) -> None:
        """See `RevocationBoard.post`. Raises also InvalidRequest: the swarm is open."""
        if self._keeper.revocations is None:
            raise InvalidRequest("an open swarm has no tokens, so none that could be revoked")
        with contextlib.suppress(RecordRejected):  # an earlier list than the one we know: the later one goes round
            self._keeper.revocations.take(revocations.encoded)
        await self.rejoin_if_alone()
        num_told = 0
        for roster in list(self._rosters.values()):
            num_told += await roster.read_all()
        if self.num_neighbours and not num_told:
            raise NetworkError(f"the revocation list was taken by none of {self.num_neighbours} peers")

    async def posted(self) -> list[Posted]:
        """See `RevocationBoard.posted`. Raises also InvalidRequest: the swarm is open."""
        if self._keeper.revocations is None:
            raise InvalidRequest("an open swarm has no tokens, so none that could be revoked")
        await self.rejoin_if_alone()
        for roster in list(self._rosters.values()):
            if self.num_neighbours and not roster.is_fresh(limits.PULSE_PERIOD_S + limits.PULSE_STEP_S):
                await roster.look()
        latest = self._keeper.revocations.latest
        return [Posted(latest.encoded, self._clock() + limits.RECORD_TTL_S)] if latest is not None else []

    async def rejoin_if_alone(self) -> None:
        """Find the swarm again after everybody we knew has gone; the first peer of a swarm may be alone.

        Raises:
            ConnectFailed: none of the initial peers answers.
        """
        if not self._p2pd.is_alive:
            raise ChannelClosed("our p2pd has ended")
        if self.num_neighbours or not self._initial_peers:
            return
        from hivemind.p2p import PeerID

        reached = await dial_any(self._p2pd, self._initial_peers)
        pings = [self._node.protocol.call_ping(PeerID.from_base58(owner_of_address(address))) for address in reached]
        await asyncio.gather(*pings)
        await asyncio.sleep(0)  # hivemind enters an answer into its routing table in a task of its own
        if not self.num_neighbours:
            raise ConnectFailed(f"no directory of ours at {', '.join(self._initial_peers)}")

    async def meet(self, address: str) -> None:
        """Get to know the peer at a multiaddr, unless we do already: what joins two swarms that began apart.

        Raises:
            ConnectFailed: it does not answer, or is somebody else.
        """
        from hivemind.p2p import PeerID

        peer = owner_of_address(address)
        known = self._node.protocol.routing_table.peer_id_to_uid
        if peer == self._keeper.us or PeerID.from_base58(peer) in known:
            return
        await dial_any(self._p2pd, [address])
        if await self._node.protocol.call_ping(PeerID.from_base58(peer)) is None:
            raise ConnectFailed(f"no directory of ours at {address}")

    def is_barred(self, peer: PeerId) -> bool:
        """See `Directory.is_barred`."""
        return self._keeper.book.is_barred(peer)

    async def aclose(self) -> None:
        """Leave the DHT; p2pd goes on. Our records stay with their keepers until they expire."""
        from hivemind.p2p import P2PDaemonError

        with contextlib.suppress(P2PDaemonError, TimeoutError):  # p2pd is gone: then there is nothing to take away
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._port.close()
                await self._node.shutdown()
