"""A directory inside one process, for tests and the simulator: one shared book, no network, no tasks.

Records are signed and verified as everywhere. Time comes from the clock it is given, so it works in virtual time.
"""

from collections.abc import Callable, Sequence

from shoal.protocol.identity import Identity
from shoal.protocol.ids import LayerId
from shoal.protocol.limits import RECORD_TTL_S
from shoal.protocol.net.directory import Posted
from shoal.protocol.record_book import RecordBook
from shoal.protocol.records import HolderRecord, encode_record
from shoal.protocol.revocation_list import RevocationList


class MemoryDirectory:
    """One peer's view of a book that all peers of a simulation share."""

    def __init__(self, book: RecordBook, identity: Identity, clock: Callable[[], float]) -> None:
        """`clock`: Unix time in seconds."""
        self._book = book
        self._identity = identity
        self._clock = clock

    async def publish(self, records: Sequence[HolderRecord]) -> None:
        """Sign and store our records.

        Raises:
            InvalidRequest: a record is not ours, or over a limit. RecordRejected: it has expired, or a layer is full.
        """
        for record in records:
            self._book.add(encode_record(record, self._identity), self._identity.peer, self._clock())

    async def lookup(self, model_root: bytes, layers: Sequence[LayerId]) -> dict[LayerId, list[HolderRecord]]:
        """The live records of each layer, sorted by peer id."""
        return self._book.lookup(model_root, layers, self._clock())

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
