"""A directory from lines of text: signed records in base64, one a line, as a file or a message carries them.

For a handful of machines without a DHT: each node writes its line where the others read them. Knows no files: lines
come in by `read_lines`, as often as they change, and go out by `lines`.
"""

import base64
import binascii
import logging
from collections.abc import Callable, Iterable, Sequence

from shoal.protocol.errors import RecordRejected, ShoalError
from shoal.protocol.herald import Herald
from shoal.protocol.identity import Identity
from shoal.protocol.ids import LayerId, PeerId
from shoal.protocol.pulses import PULSE_BYTES
from shoal.protocol.record_book import RecordBook
from shoal.protocol.record_codec import owner_of
from shoal.protocol.records import HolderRecord, NodeRecord

INDEX_BYTES = 2
"""Before the pulse and the record: the pulse's place."""

_log = logging.getLogger(__name__)


class StaticDirectory:
    """The records of some lines, and our own."""

    def __init__(self, identity: Identity, clock: Callable[[], float]) -> None:
        """`clock`: Unix time in seconds."""
        self._book = RecordBook()
        self._identity = identity
        self._clock = clock
        self._herald = Herald(identity, clock)
        self._own: dict[bytes, bytes] = {}

    def read_lines(self, lines: Iterable[str]) -> int:
        """Add the records of `lines` and return how many were good.

        Empty lines and lines that begin with # are passed over. A record that is forged or has expired is left out:
        a file of a dozen nodes always has some.
        """
        num_good = 0
        for line in (line.strip() for line in lines):
            if not line or line.startswith("#"):
                continue
            try:
                self._read(_decode_line(line))
                num_good += 1
            except ShoalError as error:
                _log.debug("a line that is no live record: %s", error)
        return num_good

    def lines(self) -> list[str]:
        """Our own records, one for each model, as lines for others to read."""
        return [base64.b64encode(data).decode() for data in self._own.values()]

    async def publish(self, record: NodeRecord) -> None:
        """Sign our record, or give it a new pulse; `lines` has it from now on.

        Raises:
            InvalidRequest: it is not ours, or over a limit. RecordRejected: it has expired, or the model's roster is
            full.
        """
        said = self._herald.say(record)
        self._book.add(said.data, self._identity.peer, self._clock(), said.index, said.pulse)
        self._own[said.model_root] = said.index.to_bytes(INDEX_BYTES, "big") + said.pulse + said.data

    async def lookup(
        self, model_root: bytes, layers: Sequence[LayerId], max_age_s: float = 0.0
    ) -> dict[LayerId, list[HolderRecord]]:
        """What each live node says of each layer, sorted by peer id; as of the lines that were read last."""
        return self._book.lookup(model_root, layers, self._clock())

    def is_barred(self, peer: PeerId) -> bool:
        """See `Directory.is_barred`."""
        return self._book.is_barred(peer)

    async def aclose(self) -> None:
        """Nothing."""

    def _read(self, line: bytes) -> None:
        index, pulse = int.from_bytes(line[:INDEX_BYTES], "big"), line[INDEX_BYTES:][:PULSE_BYTES]
        data = line[INDEX_BYTES + PULSE_BYTES :]
        self._book.add(data, owner_of(data), self._clock(), index, pulse)


def _decode_line(line: str) -> bytes:
    try:
        return base64.b64decode(line, validate=True)
    except (ValueError, binascii.Error) as error:
        raise RecordRejected("a line that is not base64") from error
