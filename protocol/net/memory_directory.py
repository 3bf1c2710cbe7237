"""A directory inside one process, for tests and the simulator: one shared book, no network, no tasks.

Records are signed and verified as everywhere. Time comes from the clock it is given, so it works in virtual time.
"""

from collections.abc import Callable, Sequence

from shoal.protocol.herald import Herald
from shoal.protocol.identity import Identity
from shoal.protocol.ids import LayerId, PeerId
from shoal.protocol.limits import RECORD_TTL_S
from shoal.protocol.net.directory import Posted
from shoal.protocol.record_book import RecordBook
from shoal.protocol.records import HolderRecord, NodeRecord, roster_name
from shoal.protocol.revocation_list import RevocationList


class MemoryDirectory:
    """One peer's view of a book that all peers of a simulation share."""

    def __init__(
        self,
        book: RecordBook,
        identity: Identity,
        clock: Callable[[], float],
        own_clock: Callable[[], float] | None = None,
    ) -> None:
        """`clock`: Unix time in seconds. `own_clock`: by which we date what we say, where ours is wrong."""
        self._book = book
        self._identity = identity
        self._clock = clock
        self._herald = Herald(identity, own_clock or clock)

    async def publish(self, record: NodeRecord) -> None:
        """Sign and store our record, or renew it by a pulse.

        Raises:
            InvalidRequest: it is not ours, or over a limit. RecordRejected: it has expired, or the model's roster is
            full.
        """
        said, now_s = self._herald.say(record), self._clock()
        roster, peer = roster_name(record.model_root), self._identity.peer
        if said.is_new or not self._book.renew(roster, peer, said.index, said.pulse, now_s):
            self._book.add(said.data, peer, now_s, said.index, said.pulse)

    async def lookup(
        self, model_root: bytes, layers: Sequence[LayerId], max_age_s: float = 0.0
    ) -> dict[LayerId, list[HolderRecord]]:
        """What each live node says of each layer, sorted by peer id; always the latest."""
        return self._book.lookup(model_root, layers, self._clock())

    def is_barred(self, peer: PeerId) -> bool:
        """See `Directory.is_barred`."""
        return self._book.is_barred(peer)

    async def aclose(self) -> None:
        """Nothing: records stay until they expire."""


class MemoryBoard:
    """Implements `RevocationBoard` for all peers of a simulation."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock`: Unix time in seconds."""
        self._clock = clock
        self._lists: dict[int, Posted] = {}

    async def post(self, revocations: RevocationList) -> None:
        """See `RevocationBoard.post`."""
        self._lists[revocations.number] = Posted(revocations.encoded, self._clock() + RECORD_TTL_S)

    async def posted(self) -> list[Posted]:
        """See `RevocationBoard.posted`."""
        return [each for each in self._lists.values() if each.expires_at_s > self._clock()]
