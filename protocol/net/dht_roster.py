"""One model's roster as one peer sees it: telling its keepers, hearing from them, and whom to believe about whom.

Between `hivemind_dht.py`, which is the directory, and `dht_keepers.py` and `dht_sync.py`, which find and ask. A keeper
can withhold: none is believed alone that a holder has gone, and each is heard in turn.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from shoal.protocol import limits
from shoal.protocol.herald import Statement
from shoal.protocol.ids import PeerId
from shoal.protocol.net.dht_keepers import NUM_KEEPERS, Keepers
from shoal.protocol.net.dht_sync import SyncPort
from shoal.protocol.record_keeper import RecordKeeper
from shoal.protocol.sync_messages import Status, SyncReply, SyncRequest

if TYPE_CHECKING:
    from hivemind.p2p import PeerID

SOON_S = 15.0
"""A holder that is about to end is asked for anew, not remembered: it may have a slow clock, or be gone."""

SILENT_S = limits.RECORD_TTL_S - limits.PULSE_PERIOD_S - 2 * limits.PULSE_STEP_S
"""Who has less left after a look may have told other keepers: they are asked too, before anybody takes it for dead."""

Clock = Callable[[], float]
"""Unix time in seconds."""


class Roster:
    """Our exchanges about one model. `keeper`: where what we hear is kept."""

    def __init__(
        self, name: bytes, us: PeerId, keepers: Keepers, port: SyncPort, keeper: RecordKeeper, clock: Clock
    ) -> None:
        self._name = name
        self._us = us
        self._keepers = keepers
        self._port = port
        self._keeper = keeper
        self._clock = clock
        self._looked_at_s: float | None = None
        self._turn = 0

    def is_fresh(self, max_age_s: float) -> bool:
        """Whether we may answer from memory: we have looked, and nobody is about to end by what we know."""
        now_s = asyncio.get_running_loop().time()
        if self._looked_at_s is None or now_s - self._looked_at_s >= max_age_s:
            return False
        return not self._is_anybody_ending(SOON_S)

    async def tell(self, said: Statement) -> int:
        """Tell up to `NUM_KEEPERS` keepers and hear from one of them who is alive; how many took it."""
        request = SyncRequest(self._name, index=said.index, pulse=said.pulse)
        record = self._keeper.seal.seal(said.data, self._us)
        candidates = await self._keepers.find()
        self._turn += 1
        teller = candidates[self._turn % min(NUM_KEEPERS, len(candidates))] if candidates else None

        async def tell(peer: "PeerID") -> bool:
            first = replace(request, is_summary_wanted=peer == teller, record=record if said.is_new else b"")
            reply = await self._sync(peer, first)
            if reply is not None and reply.status is Status.UNKNOWN:
                reply = await self._sync(peer, replace(request, record=record))
            return reply is not None and reply.status is Status.KEPT

        return await self._each(tell, NUM_KEEPERS)

    async def look(self) -> None:
        """Hear from one keeper who is alive; from all, the first time and where somebody seems to have gone."""
        self._turn += 1
        if self._looked_at_s is not None:
            await self._each(self._read, 1, self._turn)
        if self._looked_at_s is None or self._is_anybody_ending(SILENT_S):
            await self.read_all()

    async def read_all(self) -> int:
        """Hear from all keepers, and tell them the latest revocation list; how many answered."""
        return await self._each(self._read, NUM_KEEPERS)

    def _is_anybody_ending(self, within_s: float) -> bool:
        now_s = self._clock()
        live = self._keeper.book.live(self._name, now_s)
        return any(kept.expires_at_s < now_s + within_s for kept in live if kept.record.peer != self._us)

    async def _read(self, peer: "PeerID") -> bool:
        return await self._sync(peer, SyncRequest(self._name, is_summary_wanted=True)) is not None

    async def _each(self, act: "Callable[[PeerID], Awaitable[bool]]", num_wanted: int, first: int = 0) -> int:
        """Do it with the nearest keepers, beginning at place `first` of those, until `num_wanted` have; one search more
        if too many failed."""
        num_done, asked = 0, set()
        for _ in range(2):
            found = await self._keepers.find()
            shift = first % max(1, min(NUM_KEEPERS, len(found)))
            left = [peer for peer in found[shift:] + found[:shift] if peer not in asked]
            while num_done < num_wanted and left:
                batch, left = left[: num_wanted - num_done], left[num_wanted - num_done :]
                asked.update(batch)
                num_done += sum(await asyncio.gather(*map(act, batch)))
            if num_done >= num_wanted or not self._keepers.is_stale:
                break
        return num_done

    async def _sync(self, peer: "PeerID", request: SyncRequest) -> SyncReply | None:
        """One exchange, and what it tells us: records that we lack, revocations either way. None: no answer."""
        keeper = self._keeper
        reply = await self._port.call(peer, replace(request, list_number=keeper.list_number))
        if reply is None:
            self._keepers.failed(peer)
            return None
        keeper.take_revocations(reply.revocations)
        if keeper.list_number > reply.list_number:
            news = SyncRequest(self._name, list_number=keeper.list_number, revocations=keeper.sealed_revocations)
            await self._port.call(peer, news)
        if request.is_summary_wanted:
            await self._fetch(peer, keeper.unknown(self._name, reply.summary))
            self._looked_at_s = asyncio.get_running_loop().time()
        return reply

    async def _fetch(self, peer: "PeerID", tags: Sequence[bytes]) -> None:
        """Records that a keeper has and we lack; one that does not give what it announced is asked no further."""
        for start in range(0, len(tags), limits.MAX_TAGS_PER_SYNC):
            wanted = tuple(tags[start : start + limits.MAX_TAGS_PER_SYNC])
            request = SyncRequest(self._name, tags=wanted, list_number=self._keeper.list_number)
            reply = await self._port.call(peer, request)
            if reply is None or not reply.records:
                return
            self._keeper.take(self._name, reply.records)
