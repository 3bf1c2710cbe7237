"""A directory from lines of text: signed records in base64, one a line, as a file or a message carries them.

For a handful of machines without a DHT: each node writes its lines where the others read them. Knows no files: lines
come in by `read_lines`, as often as they change, and go out by `lines`.
"""

import base64
import binascii
import logging
from collections.abc import Callable, Iterable, Sequence

import msgpack

from shoal.protocol import limits
from shoal.protocol.errors import RecordRejected, ShoalError
from shoal.protocol.identity import Identity, peer_id_of
from shoal.protocol.ids import LayerId, PeerId
from shoal.protocol.record_book import RecordBook
from shoal.protocol.records import MAX_FIELDS, HolderRecord, encode_record

_PUBLIC_KEY = 2
"""The owner's key among the fields of a record (`records.py`)."""

_log = logging.getLogger(__name__)


class StaticDirectory:
    """The records of some lines, and our own."""

    def __init__(self, identity: Identity, clock: Callable[[], float]) -> None:
        """`clock`: Unix time in seconds."""
        self._book = RecordBook()
        self._identity = identity
        self._clock = clock
        self._own: dict[LayerId, bytes] = {}

    def read_lines(self, lines: Iterable[str | bytes]) -> int:
        """Add the records of `lines` (base64 text, or signed records as bytes) and return how many were good.

        Empty lines and lines that begin with # are passed over. A record that is forged or has expired is left out:
        a file of a dozen nodes always has some.
        """
        num_good = 0
        for line in lines:
            if not line.strip() or (isinstance(line, str) and line.lstrip().startswith("#")):
                continue
            try:
                data = line if isinstance(line, bytes) else _decode_line(line.strip())
                self._book.add(data, owner_of(data), self._clock())
                num_good += 1
            except ShoalError as error:
                _log.debug("a line that is no live record: %s", error)
        return num_good

    def lines(self) -> list[str]:
        """Our own records, as lines for others to read."""
        return [base64.b64encode(data).decode() for data in self._own.values()]

    async def publish(self, records: Sequence[HolderRecord]) -> None:
        """Sign our records; `lines` has them from now on.

        Raises:
            InvalidRequest: a record is not ours, or over a limit. RecordRejected: it has expired, or a layer is full.
        """
        for record in records:
            data = encode_record(record, self._identity)
            self._book.add(data, self._identity.peer, self._clock())
            self._own[record.layer] = data

    async def lookup(self, model_root: bytes, layers: Sequence[LayerId]) -> dict[LayerId, list[HolderRecord]]:
        """The live records of each layer, sorted by peer id."""
        return self._book.lookup(model_root, layers, self._clock())

    async def aclose(self) -> None:
        """Nothing."""


def owner_of(data: bytes) -> PeerId:
    """Whose record this claims to be; the signature is not checked.

    Raises:
        RecordRejected: not a record.
    """
    try:
        fields = msgpack.unpackb(
            data[: limits.MAX_RECORD_BYTES + 1], strict_map_key=False, max_str_len=limits.MAX_ADDRESS_BYTES,
            max_bin_len=64, max_array_len=limits.MAX_ADDRESSES, max_map_len=MAX_FIELDS, max_ext_len=0,
        )  # fmt: skip
        return peer_id_of(fields[_PUBLIC_KEY])
    except (ValueError, TypeError, LookupError, ShoalError) as error:
        raise RecordRejected("a line that is no record") from error


def _decode_line(line: str) -> bytes:
    try:
        return base64.b64decode(line, validate=True)
    except (ValueError, binascii.Error) as error:
        raise RecordRejected("a line that is not base64") from error
