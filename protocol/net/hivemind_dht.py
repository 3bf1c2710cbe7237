"""The directory on hivemind's Kademlia DHT: who is near a model's name keeps the records of its holders.

A `DHTNode` in our own loop, over our own p2pd, says which peers are nearest (`dht_keepers.py`); with those we speak
SYNC (`record_keeper.py`), one unary call a keeper. A node tells its keepers that it is alive every 40 s and hears from
one of them who else is. Knows no experts and no channels.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
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
from shoal.protocol.herald import Herald, Statement
from shoal.protocol.identity import Identity
from shoal.protocol.ids import LayerId
from shoal.protocol.net.dht_dialing import dial_any, owner_of_address
from shoal.protocol.net.dht_keepers import NUM_KEEPERS, Keepers
from shoal.protocol.net.dht_sync import SyncPort
from shoal.protocol.net.directory import Posted
from shoal.protocol.net.hivemind_loader import load_hivemind_in_thread
from shoal.protocol.net.p2pd import P2pd
from shoal.protocol.record_keeper import RecordKeeper
from shoal.protocol.record_seal import RecordSeal
from shoal.protocol.records import HolderRecord, NodeRecord
from shoal.protocol.revocation_list import RevocationList
from shoal.protocol.sync_messages import Status, SyncReply, SyncRequest

if TYPE_CHECKING:
    from hivemind.dht.node import DHTNode
    from hivemind.p2p import PeerID

WAIT_TIMEOUT_S = 1.2
"""A silent peer costs this once per search and is then left alone for a while; hivemind's 3 s made lookups crawl."""

LOOKUP_TIMEOUT_S = 10.0
"""For a look at a roster; what has been found by then is returned."""

PUBLISH_TIMEOUT_S = 20.0
"""For all keepers to be told; half of the time until the next pulse."""

CLOSE_TIMEOUT_S = 1.0
"""For p2pd to take our handlers away; it is about to end anyway."""

SOON_S = 15.0
"""A holder that is about to end is asked for anew, not remembered: it may have a slow clock, or be gone."""

SILENT_S = limits.RECORD_TTL_S - limits.PULSE_PERIOD_S - limits.PULSE_STEP_S - 5.0
"""Who has less left after a look may have told other keepers: they are asked too, before anybody takes it for dead."""

Clock = Callable[[], float]
"""Unix time in seconds."""


async def join_dht(
    p2pd: P2pd,
    identity: Identity,
    initial_peers: Sequence[str],
    clock: Clock,
    *,
    is_client: bool = False,
    seal: RecordSeal | None = None,
    founder_key: bytes | None = None,
    model_root: bytes = b"",
) -> "HivemindDirectory":
    """Join the DHT through `initial_peers` (multiaddrs with /p2p/ID), or start one where there are none.

    `is_client`: read and publish, but keep nothing for others. `seal`, `founder_key`: of a private swarm, the
    latter for its revocation lists, which the keepers of `model_root` pass on. Raises:
        ConnectFailed: none of `initial_peers` answers.

    Cancellation: p2pd may stay connected to the initial peers.
    """
    await load_hivemind_in_thread()
    from hivemind.dht.node import DHTNode
    from hivemind.dht.routing import DHTID

    from shoal.protocol.net.hivemind_guard import install_guard, node_id_of

    keeper = RecordKeeper(clock, seal, founder_key)
    reached = await dial_any(p2pd, initial_peers)
    install_guard(keeper.seal.swarm_tag)
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
    directory = HivemindDirectory(node, p2pd, identity, tuple(initial_peers), clock, keeper, port)
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


@dataclass(slots=True)
class Roster:
    """What we know of one model's keepers. `looked_at_s`: the loop's time of the last answer."""

    name: bytes
    keepers: Keepers
    looked_at_s: float | None = None
    turn: int = 0
    """Whose turn it is to tell us who is alive: each keeper in turn, so that none can hide anybody for long."""


class HivemindDirectory:
    """The Directory of a swarm of strangers. Made by `join_dht`."""

    def __init__(
        self,
        node: "DHTNode",
        p2pd: P2pd,
        identity: Identity,
        initial_peers: tuple[str, ...],
        clock: Clock,
        keeper: RecordKeeper,
        port: SyncPort,
    ) -> None:
        self._node = node
        self._p2pd = p2pd
        self._identity = identity
        self._initial_peers = initial_peers
        self._clock = clock
        self._keeper = keeper
        self._port = port
        self._herald = Herald(identity, clock)
        self._rosters: dict[bytes, Roster] = {}

    @property
    def num_neighbours(self) -> int:
        """DHT nodes that we know and that answered when we last asked; 0: we are alone."""
        return len(self._node.protocol.routing_table.peer_id_to_uid)

    def roster(self, model_root: bytes) -> Roster:
        """Where the holders of a model are found."""
        if model_root not in self._rosters:
            name = self._keeper.seal.name(model_root)
            self._rosters[model_root] = Roster(name, Keepers(self._node, name))
        return self._rosters[model_root]

    async def publish(self, record: NodeRecord) -> None:
        """See `Directory.publish`: the record to up to four keepers, or a pulse to those that have it.

        Raises:
            NetworkError: nobody took it. ConnectFailed: we are alone and no bootstrap peer answers.
            InvalidRequest: it is not ours, or over a limit.
        """
        said, roster = self._herald.say(record), self.roster(record.model_root)
        self._keeper.book.add(said.data, self._identity.peer, self._clock(), said.index, said.pulse)
        await self.rejoin_if_alone()
        if not self.num_neighbours:
            return
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                num_kept = await self._tell(roster, said)
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
        if self.num_neighbours and not self._is_fresh(roster, max_age_s):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                    await self._look(roster)
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
            num_told += await self._each(roster, lambda peer, r=roster: self._read(r, peer), NUM_KEEPERS)  # type: ignore[misc]
        if self.num_neighbours and not num_told:
            raise NetworkError(f"the revocation list was taken by none of {self.num_neighbours} peers")

    async def posted(self) -> list[Posted]:
        """See `RevocationBoard.posted`. Raises also InvalidRequest: the swarm is open."""
        if self._keeper.revocations is None:
            raise InvalidRequest("an open swarm has no tokens, so none that could be revoked")
        await self.rejoin_if_alone()
        for roster in list(self._rosters.values()):
            if self.num_neighbours and not self._is_fresh(roster, limits.PULSE_PERIOD_S + limits.PULSE_STEP_S):
                await self._look(roster)
        latest = self._keeper.revocations.latest
        return [Posted(latest.encoded, self._clock() + limits.RECORD_TTL_S)] if latest is not None else []

    def _is_fresh(self, roster: Roster, max_age_s: float) -> bool:
        """Whether we may answer from memory: we have looked, and nobody is about to end by what we know."""
        now_s = asyncio.get_running_loop().time()
        if roster.looked_at_s is None or now_s - roster.looked_at_s >= max_age_s:
            return False
        return not self._about_to_end(roster, SOON_S)

    def _about_to_end(self, roster: Roster, within_s: float) -> bool:
        now_s = self._clock()
        live = self._keeper.book.live(roster.name, now_s)
        return any(kept.expires_at_s < now_s + within_s for kept in live if kept.record.peer != self._identity.peer)

    async def _tell(self, roster: Roster, said: Statement) -> int:
        """Tell up to `NUM_KEEPERS` keepers and hear from one of them; how many took it."""
        request = SyncRequest(roster.name, index=said.index, pulse=said.pulse)
        record = self._keeper.seal.seal(said.data, self._identity.peer)
        candidates = await roster.keepers.find()
        roster.turn += 1
        teller = candidates[roster.turn % min(NUM_KEEPERS, len(candidates))] if candidates else None

        async def tell(peer: "PeerID") -> bool:
            first = replace(request, is_summary_wanted=peer == teller, record=record if said.is_new else b"")
            reply = await self._sync(roster, peer, first)
            if reply is not None and reply.status is Status.UNKNOWN:
                reply = await self._sync(roster, peer, replace(request, record=record))
            return reply is not None and reply.status is Status.KEPT

        return await self._each(roster, tell, NUM_KEEPERS)

    async def _look(self, roster: Roster) -> None:
        """Hear from one keeper who is alive; from all, the first time and where somebody seems to have gone."""
        roster.turn += 1
        if roster.looked_at_s is not None:
            await self._each(roster, lambda peer: self._read(roster, peer), 1, roster.turn)
        if roster.looked_at_s is None or self._about_to_end(roster, SILENT_S):
            await self._each(roster, lambda peer: self._read(roster, peer), NUM_KEEPERS)

    async def _read(self, roster: Roster, peer: "PeerID") -> bool:
        return await self._sync(roster, peer, SyncRequest(roster.name, is_summary_wanted=True)) is not None

    async def _each(
        self, roster: Roster, act: "Callable[[PeerID], Awaitable[bool]]", num_wanted: int, first: int = 0
    ) -> int:
        """Do it with the nearest keepers, beginning at place `first` of those, until `num_wanted` have; one search more
        if too many failed."""
        num_done, asked = 0, set()
        for _ in range(2):
            found = await roster.keepers.find()
            shift = first % max(1, min(NUM_KEEPERS, len(found)))
            left = [peer for peer in found[shift:] + found[:shift] if peer not in asked]
            while num_done < num_wanted and left:
                batch, left = left[: num_wanted - num_done], left[num_wanted - num_done :]
                asked.update(batch)
                num_done += sum(await asyncio.gather(*map(act, batch)))
            if num_done >= num_wanted or not roster.keepers.is_stale:
                break
        return num_done

    async def _sync(self, roster: Roster, peer: "PeerID", request: SyncRequest) -> SyncReply | None:
        """One exchange, and what it tells us: records that we lack, revocations either way. None: no answer."""
        keeper = self._keeper
        reply = await self._port.call(peer, replace(request, list_number=keeper.list_number))
        if reply is None:
            roster.keepers.failed(peer)
            return None
        keeper.take_revocations(reply.revocations)
        if keeper.list_number > reply.list_number:
            news = SyncRequest(roster.name, list_number=keeper.list_number, revocations=keeper.sealed_revocations)
            await self._port.call(peer, news)
        if request.is_summary_wanted:
            await self._fetch(roster, peer, keeper.unknown(roster.name, reply.summary))
            roster.looked_at_s = asyncio.get_running_loop().time()
        return reply

    async def _fetch(self, roster: Roster, peer: "PeerID", tags: Sequence[bytes]) -> None:
        """Records that a keeper has and we lack; one that does not give what it announced is asked no further."""
        for start in range(0, len(tags), limits.MAX_TAGS_PER_SYNC):
            wanted = tuple(tags[start : start + limits.MAX_TAGS_PER_SYNC])
            reply = await self._port.call(
                peer, SyncRequest(roster.name, tags=wanted, list_number=self._keeper.list_number)
            )
            if reply is None or not reply.records:
                return
            self._keeper.take(roster.name, reply.records)

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
        if peer == self._identity.peer or PeerID.from_base58(peer) in known:
            return
        await dial_any(self._p2pd, [address])
        if await self._node.protocol.call_ping(PeerID.from_base58(peer)) is None:
            raise ConnectFailed(f"no directory of ours at {address}")

    async def aclose(self) -> None:
        """Leave the DHT; p2pd goes on. Our records stay with their keepers until they expire."""
        from hivemind.p2p import P2PDaemonError

        with contextlib.suppress(P2PDaemonError, TimeoutError):  # p2pd is gone: then there is nothing to take away
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._port.close()
                await self._node.shutdown()
