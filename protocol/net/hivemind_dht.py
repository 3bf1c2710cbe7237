"""The directory on hivemind's Kademlia DHT: holder records that other peers keep, each signed by its owner.

A `DHTNode` in our own loop, over our own p2pd. Key: `records.directory_key`; subkey: the owner's peer id; value: the
signed record, whose expiry is also the entry's. Every peer checks every record it stores, passes on or reads, so a lie
about another peer gets nowhere. What a peer says about itself stays a hint. Knows no experts and no channels.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
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
    ShoalError,
)
from shoal.protocol.identity import Identity, peer_id_of
from shoal.protocol.ids import LayerId, PeerId
from shoal.protocol.net import p2pd_control
from shoal.protocol.net.directory import Posted
from shoal.protocol.net.hivemind_loader import load_hivemind_in_thread
from shoal.protocol.net.p2pd import P2pd
from shoal.protocol.record_seal import RecordSeal
from shoal.protocol.records import HolderRecord, decode_record, encode_record
from shoal.protocol.revocation_list import RevocationList, read_revocations, revocations_name

if TYPE_CHECKING:
    from hivemind.dht.crypto import DHTRecord
    from hivemind.dht.node import DHTNode

NUM_REPLICAS = 5
"""Peers that keep a record. With a third of 24 nodes killed at once, 30 of 30 lookups still found theirs."""

WAIT_TIMEOUT_S = 1.2
"""A silent peer costs this once per search and is then left alone for a while; hivemind's 3 s made lookups crawl."""

DIAL_TIMEOUT_S = 5.0
"""For a bootstrap peer to be connected: 3 RTT, and time to try its other addresses."""

DIAL_GRACE_S = 0.5
"""For the other bootstrap peers once one is connected; one that is switched off would hold up every join."""

LOOKUP_TIMEOUT_S = 10.0
"""For all layers of a lookup (60 keys: 0.5 s measured); what has been found by then is returned."""

PUBLISH_TIMEOUT_S = 20.0
"""For all records of a publish (58 keys: 0.5 s measured); a third of a record's life is 30 s."""

CLOSE_TIMEOUT_S = 1.0
"""For p2pd to take our handlers away; it is about to end anyway."""

MAX_VERIFIED = 16_384
"""Records whose signature is remembered as good: each comes from several replicas, and again at the next lookup."""

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
) -> "HivemindDirectory":
    """Join the DHT through `initial_peers` (multiaddrs with /p2p/ID), or start one where there are none.

    `is_client`: read and publish, but keep nothing for others. `seal`, `founder_key`: of a private swarm, the
    latter for its revocation lists. Raises:
        ConnectFailed: none of `initial_peers` answers.

    Cancellation: p2pd may stay connected to the initial peers.
    """
    await load_hivemind_in_thread()
    from hivemind.dht.node import DHTNode
    from hivemind.dht.routing import DHTID

    from shoal.protocol.net.hivemind_guard import install_guard, node_id_of

    seal = seal or RecordSeal()
    checker = RecordChecker(clock, seal)
    board = ListPlace.of(founder_key, seal, clock)
    reached = await _dial_any(p2pd, initial_peers)
    install_guard(seal.swarm_tag)
    node = await DHTNode.create(
        p2p=p2pd.p2p,
        node_id=DHTID.from_bytes(node_id_of(p2pd.p2p.peer_id.to_bytes())),
        initial_peers=reached,
        num_replicas=NUM_REPLICAS,
        wait_timeout=WAIT_TIMEOUT_S,
        record_validator=_validator(checker, seal, board),
        client_mode=is_client,
        # hivemind's clocks must agree within 3 s, ours within 60 (records carry their own times)
        ensure_bootstrap_success=False,
        strict=False,
        # no caches: one peer's answer would stand for everybody's (`hivemind_guard.py`)
        cache_locally=False,
        cache_nearest=0,
        cache_on_store=False,
        cache_refresh_before_expiry=0,
        reuse_get_requests=False,
    )
    directory = HivemindDirectory(node, p2pd, identity, tuple(initial_peers), checker, seal, board)
    try:
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
        identity: Identity,
        initial_peers: tuple[str, ...],
        checker: "RecordChecker",
        seal: RecordSeal,
        board: "ListPlace | None" = None,
    ) -> None:
        self._seal = seal
        self._board = board
        self._node = node
        self._p2pd = p2pd
        self._identity = identity
        self._initial_peers = initial_peers
        self._checker = checker
        self._last_expiry_s: dict[bytes, float] = {}

    @property
    def num_neighbours(self) -> int:
        """DHT nodes that we know and that answered lately; 0: we are alone."""
        return len(self._node.protocol.routing_table.peer_id_to_uid)

    async def publish(self, records: Sequence[HolderRecord]) -> None:
        """Sign and store our records at up to five peers each.

        hivemind keeps the entry that expires last, so a record that replaces another expires 1 ms after it at the
        earliest. A record that no peer took is missing until the next publish.

        Raises:
            NetworkError: no record was taken by anybody. InvalidRequest: a record is not ours, or over a limit.
        """
        if not records:
            return
        await self.rejoin_if_alone()
        records = [self._outlive_predecessor(record) for record in records]
        keys = [self._seal.name(record.model_root, record.layer) for record in records]
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                accepted = await self._node.store_many(
                    keys,
                    [self._seal.seal(encode_record(record, self._identity), record.peer) for record in records],
                    [record.expires_at_s for record in records],
                    subkeys=[str(self._identity.peer)] * len(keys),
                    exclude_self=self.num_neighbours > 0,  # our own copy helps nobody when we are gone
                )
        except TimeoutError as error:
            raise DeadlineExceeded(f"{len(records)} records were not stored in {PUBLISH_TIMEOUT_S:.0f} s") from error
        if not any(accepted.values()):
            raise NetworkError(
                f"none of our {len(records)} records was taken by any of {self.num_neighbours} peers;"
                " is this machine's clock right?"  # records with other times than theirs are what peers refuse
            )

    def _outlive_predecessor(self, record: HolderRecord) -> HolderRecord:
        key = self._seal.name(record.model_root, record.layer)
        expires_at_s = round(max(record.expires_at_s, self._last_expiry_s.get(key, 0.0) + 0.001), 3)
        self._last_expiry_s[key] = expires_at_s
        return replace(record, expires_at_s=expires_at_s)

    async def lookup(self, model_root: bytes, layers: Sequence[LayerId]) -> dict[LayerId, list[HolderRecord]]:
        """All valid records of these layers, as far as they were found within 10 s.

        Raises:
            ConnectFailed: we are alone and no bootstrap peer answers. DeadlineExceeded: nothing was found in time.
        """
        await self.rejoin_if_alone()
        keys = {self._seal.name(model_root, layer): layer for layer in layers}
        searches = await self._node.get_many(list(keys), sufficient_expiration_time=float("inf"), return_futures=True)
        try:
            done, late = await asyncio.wait(searches.values(), timeout=LOOKUP_TIMEOUT_S) if searches else (set(), set())
        finally:
            for search in searches.values():
                search.cancel()  # no effect on those that are done
        if late and not done:
            raise DeadlineExceeded(f"the directory did not answer within {LOOKUP_TIMEOUT_S:.0f} s")
        return {
            layer: self._read(searches[key].result()) if searches[key] in done else [] for key, layer in keys.items()
        }

    async def post(self, revocations: RevocationList) -> None:
        """See `RevocationBoard.post`. Raises also InvalidRequest: the swarm is open."""
        place = self._place()
        await self.rejoin_if_alone()
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                is_stored = await self._node.store(
                    place.name, place.seal.seal(revocations.encoded, place.founder),
                    round(place.clock() + limits.RECORD_TTL_S, 3), subkey=str(revocations.number),
                    exclude_self=self.num_neighbours > 0,
                )  # fmt: skip
        except TimeoutError as error:
            raise DeadlineExceeded(f"the revocation list was not stored in {PUBLISH_TIMEOUT_S:.0f} s") from error
        if not is_stored:
            raise NetworkError(f"the revocation list was taken by none of {self.num_neighbours} peers")

    async def posted(self) -> list[Posted]:
        """See `RevocationBoard.posted`. Raises also InvalidRequest: the swarm is open."""
        place = self._place()
        await self.rejoin_if_alone()
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                found = await self._node.get(place.name, latest=True)
        except TimeoutError as error:
            raise DeadlineExceeded(f"the directory did not answer within {LOOKUP_TIMEOUT_S:.0f} s") from error
        lists = []
        for _, (data, expires_at_s) in sorted(found[0].items()) if found is not None else ():
            with contextlib.suppress(RecordRejected):
                lists.append(Posted(place.seal.open(data, place.founder), expires_at_s))
        return lists

    def _place(self) -> "ListPlace":
        if self._board is None:
            raise InvalidRequest("an open swarm has no tokens, so none that could be revoked")
        return self._board

    def _read(self, found: "tuple[dict[str, tuple[bytes, float]], float] | None") -> list[HolderRecord]:
        """Verify once more: what hivemind returns has been in its hands."""
        records = []
        for owner, (data, _) in sorted(found[0].items()) if found is not None else ():
            with contextlib.suppress(ShoalError):
                records.append(self._checker.check(data, PeerId(owner)))
        return records[: limits.MAX_HOLDERS_PER_LAYER]

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

        reached = await _dial_any(self._p2pd, self._initial_peers)
        pings = [self._node.protocol.call_ping(PeerID.from_base58(_owner(address))) for address in reached]
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

        peer = _owner(address)
        known = self._node.protocol.routing_table.peer_id_to_uid
        if peer == self._identity.peer or PeerID.from_base58(peer) in known:
            return
        await _dial_any(self._p2pd, [address])
        if await self._node.protocol.call_ping(PeerID.from_base58(peer)) is None:
            raise ConnectFailed(f"no directory of ours at {address}")

    async def aclose(self) -> None:
        """Leave the DHT; p2pd goes on. Our records stay with their keepers until they expire."""
        from hivemind.p2p import P2PDaemonError

        with contextlib.suppress(P2PDaemonError, TimeoutError):  # p2pd is gone: then there is nothing to take away
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._node.shutdown()


class RecordChecker:
    """`decode_record` with a memory for good signatures (0.15 ms each).

    Limits: forgets everything at `MAX_VERIFIED` records.
    """

    def __init__(self, clock: Clock, seal: RecordSeal | None = None) -> None:
        self._clock = clock
        self._seal = seal or RecordSeal()
        self._verified: dict[tuple[PeerId, bytes], HolderRecord] = {}

    def check(self, data: bytes, owner: PeerId) -> HolderRecord:
        """Decode a record found under `owner`'s subkey.

        Raises:
            RecordRejected, AuthenticationFailed: as `decode_record`.
        """
        now_s = self._clock()
        record = self._verified.get((owner, data))
        if record is None:
            record = decode_record(self._seal.open(data, owner), owner, now_s)
            if len(self._verified) >= MAX_VERIFIED:
                self._verified.clear()
            self._verified[owner, data] = record
        elif record.expires_at_s <= now_s:
            raise RecordRejected(f"a record of {owner} that has expired")
        return record


@dataclass(frozen=True, slots=True)
class ListPlace:
    """Where in the directory a private swarm's revocation lists are, and what may stand there."""

    name: bytes
    founder_key: bytes
    seal: RecordSeal
    clock: Clock

    @classmethod
    def of(cls, founder_key: bytes | None, seal: RecordSeal, clock: Clock) -> "ListPlace | None":
        """None: an open swarm."""
        if founder_key is None or seal.secret is None:
            return None
        return cls(revocations_name(founder_key, seal.secret), founder_key, seal, clock)

    @property
    def founder(self) -> PeerId:
        """The peer id of the founder's key, for whom lists are sealed."""
        return peer_id_of(self.founder_key)

    def check(self, subkey: str, data: bytes, expires_at_s: float) -> None:
        """
        Raises:
            RecordRejected, AuthenticationFailed: not a list of the founder's under its own number, or for too long.
        """
        found = read_revocations(self.seal.open(data, self.founder), self.founder_key)
        ttl_s = expires_at_s - self.clock()
        if subkey != str(found.number) or not 0 < ttl_s <= limits.MAX_RECORD_TTL_S + limits.MAX_CLOCK_SKEW_S:
            raise RecordRejected(f"revocation list {found.number} as {subkey}, for {ttl_s:.0f} s")


def _validator(checker: RecordChecker, seal: RecordSeal, board: ListPlace | None = None) -> object:
    """What hivemind asks about every record it is given to store, finds or passes on."""
    from hivemind.dht.crypto import RecordValidatorBase
    from hivemind.dht.routing import DHTID

    from shoal.protocol.net.hivemind_guard import FlatSerializer

    board_key = DHTID.generate(board.name).to_bytes() if board is not None else b""

    class HolderRecordValidator(RecordValidatorBase):  # type: ignore[misc]
        def validate(self, entry: "DHTRecord") -> bool:
            """True for a holder record that stands where it belongs: its owner, layer and expiry are the entry's."""
            try:
                owner, data = FlatSerializer.loads(entry.subkey), FlatSerializer.loads(entry.value)
                if type(owner) is not str or type(data) is not bytes:
                    return False
                if board is not None and entry.key == board_key:
                    board.check(owner, data, entry.expiration_time)
                    return True
                record = checker.check(data, PeerId(owner))
            except (ShoalError, ValueError):
                return False
            key = DHTID.generate(seal.name(record.model_root, record.layer)).to_bytes()
            return bool(entry.key == key and entry.expiration_time == record.expires_at_s)

    return HolderRecordValidator()


async def _dial_any(p2pd: P2pd, addresses: Sequence[str]) -> list[str]:
    """Connect p2pd to all of them in parallel and return those that answered, the slow ones left out.

    Raises:
        ConnectFailed: none did, with each one's reason.
    """
    dials = {asyncio.create_task(_dial(p2pd, address)): address for address in addresses}
    pending = set(dials)
    timeout_s: float | None = None
    try:
        while pending:
            done, pending = await asyncio.wait(pending, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            if any(dial.result() is None for dial in done):
                timeout_s = DIAL_GRACE_S
    finally:
        for dial in pending:
            dial.cancel()
    reached = [address for dial, address in dials.items() if dial not in pending and dial.result() is None]
    if dials and not reached:
        reasons = "; ".join(f"{address}: {dial.result()}" for dial, address in dials.items())
        raise ConnectFailed(f"no bootstrap peer answered: {reasons}")
    return reached


async def _dial(p2pd: P2pd, address: str) -> str | None:
    """Connect p2pd to the peer at `address` and return why that failed, if it did."""
    try:
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            await p2pd_control.dial(p2pd.control_path, _owner(address), [address])
    except TimeoutError:
        return f"no answer within {DIAL_TIMEOUT_S:.0f} s"
    except ShoalError as error:
        return str(error)
    return None


def _owner(address: str) -> PeerId:
    return PeerId(address.rpartition("/p2p/")[2])
