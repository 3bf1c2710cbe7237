"""What we say of ourselves, as cheaply as it can be said: a signed record when something has changed, else a pulse.

Sans-IO: identity and time are given. Shared by all directories; who is told, and how, is theirs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from shoal.protocol import limits
from shoal.protocol.errors import InvalidRequest
from shoal.protocol.identity import Identity
from shoal.protocol.pulses import MS, PulseChain, pulse_due
from shoal.protocol.record_codec import encode_record
from shoal.protocol.records import NodeRecord


@dataclass(frozen=True, slots=True)
class Statement:
    """Our record as it is now. `data`: the signed record; `pulse`: the one of place `index`; `is_new`: nobody has the
    record yet."""

    model_root: bytes
    data: bytes
    index: int
    pulse: bytes
    is_new: bool


@dataclass(frozen=True, slots=True)
class _Said:
    content: NodeRecord
    issued_ms: int
    data: bytes
    chain: PulseChain


class Herald:
    """One peer's statements, by model."""

    def __init__(self, identity: Identity, clock: Callable[[], float], voucher: bytes = b"") -> None:
        """`clock`: Unix time in seconds. `voucher`: that we are a member's, in a private swarm."""
        self._identity = identity
        self._clock = clock
        self._voucher = voucher
        self._said: dict[bytes, _Said] = {}

    def say(self, record: NodeRecord) -> Statement:
        """`record` from now on, for `limits.RECORD_TTL_S`; its `issued_ms`, `pulse` and `voucher` are set here.

        Raises:
            InvalidRequest: not ours, or over a limit.
        """
        content, now_s = replace(record, issued_ms=0, pulse=b"", voucher=self._voucher), self._clock()
        said = self._said.get(record.model_root)
        if said is not None and said.content == content and said.issued_ms <= now_s * MS:
            index = pulse_due(said.issued_ms, now_s)
            if index <= limits.MAX_PULSE:
                return Statement(record.model_root, said.data, index, said.chain[index], is_new=False)
        said = self._issue(content, self._issue_time(said, int(now_s * MS)))
        return Statement(record.model_root, said.data, 0, said.chain[0], is_new=True)

    @staticmethod
    def _issue_time(said: _Said | None, now_ms: int) -> int:
        """Now, or just after our last record, which others have, if no wrong clock dated it far ahead."""
        if said is None or said.issued_ms > now_ms + limits.MAX_CLOCK_SKEW_S * MS:
            return now_ms
        return max(now_ms, said.issued_ms + 1)

    def _issue(self, content: NodeRecord, issued_ms: int) -> _Said:
        """Sign it. The chain is of no use to anybody who does not have our key."""
        if content.peer != self._identity.peer:
            raise InvalidRequest(f"{self._identity.peer} can not sign a record of {content.peer}")
        chain = PulseChain(self._identity, content.model_root, issued_ms)
        data = encode_record(replace(content, issued_ms=issued_ms, pulse=chain[0]), self._identity)
        self._said[content.model_root] = said = _Said(content, issued_ms, data, chain)
        return said
