"""Node records by model and owner, each alive as long as its pulses go on: what a keeper keeps and a reader has read
(PROTOCOL.md §7).

Sans-IO: time is an argument. Shared by all directories; in `memory` one book is everybody's.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from blake3 import blake3

from shoal.protocol import limits
from shoal.protocol.errors import AuthenticationFailed, RecordRejected
from shoal.protocol.identity import public_key_of
from shoal.protocol.ids import LayerId, PeerId
from shoal.protocol.membership import MemberGate
from shoal.protocol.pulses import earlier, expires_at_s
from shoal.protocol.record_codec import decode_record
from shoal.protocol.records import HolderRecord, NodeRecord, of_layer, roster_name

TAG_BYTES = 12
"""Of a record's hash: nobody makes a second record for somebody's tag (2^96), and 1,024 do not meet by chance."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A verified record, and the latest pulse of it that is known."""

    record: NodeRecord
    data: bytes
    tag: bytes
    index: int
    pulse: bytes
    token_id: str = ""
    """Of the member whose node this is; empty in an open swarm."""

    @property
    def expires_at_s(self) -> float:
        """Unix time."""
        return expires_at_s(self.record.issued_ms, self.index)

    def is_timely(self, now_s: float) -> bool:
        """Whether it has not ended, and does not end so late that a clock must be wrong: its owner's, or ours once."""
        return now_s < self.expires_at_s <= now_s + limits.MAX_RECORD_TTL_S + limits.MAX_CLOCK_SKEW_S


class RecordBook:
    """The newest record of each node and model.

    Limits: `MAX_HOLDERS_PER_MODEL` of a model, `MAX_MODELS_PER_HOLDER` of a node, `MAX_KEPT_RECORDS` in all; a newcomer
    that finds it full is refused.
    """

    def __init__(self, name_of: Callable[[bytes], bytes] = roster_name, gate: MemberGate | None = None) -> None:
        """name_of: what the roster of a model is called in this swarm. gate: of a private one, whose records need a
        member's voucher; None: an open one, where there are none."""
        self._name_of = name_of
        self._gate = gate
        self._tokens: dict[PeerId, str] = {}
        """Whose nodes those are whose records we have believed; the oldest are forgotten first."""
        self._rosters: dict[bytes, dict[PeerId, Kept]] = defaultdict(dict)

    def add(
        self, data: bytes, owner: PeerId, now_s: float, index: int = 0, pulse: bytes = b"", roster: bytes = b""
    ) -> Kept:
        """Verify a signed record of `owner`, and a pulse of it, and keep it in place of its earlier ones.

        pulse: of place `index`; for place 0 it is in the record. roster: where it must belong, if not empty. Raises:
            RecordRejected: forged, malformed, out of its time or place, of no member, or the book is full.
        """
        record = decode_record(data, owner)
        name = self._name_of(record.model_root)
        if roster and name != roster:
            raise RecordRejected("a record for another model's roster")
        kept = Kept(record, data, tag_of(data), 0, record.pulse, self._member_of(record))
        self._remember(owner, kept.token_id)
        if index:
            kept = _renewed(kept, index, pulse)
        _check_time(kept, now_s)
        known = self._rosters[name].get(owner)
        if known is not None and known.record.issued_ms > record.issued_ms and known.is_timely(now_s):
            return known
        if known is None:
            self._make_room(name, owner, now_s)
        elif known.tag == kept.tag and known.index > kept.index:
            return known
        self._rosters[name][owner] = kept
        return kept

    def renew(self, roster: bytes, owner: PeerId, index: int, pulse: bytes, now_s: float) -> bool:
        """Take a pulse; False if it is none of a live record of `owner` that is here."""
        known = self._rosters.get(roster, {}).get(owner)
        if known is None or not self._is_good(known, now_s):
            return False
        if index <= known.index:
            return earlier(known.pulse, known.index - index) == pulse
        try:
            kept = _renewed(known, index, pulse)
            _check_time(kept, now_s)
        except RecordRejected:
            return False
        self._rosters[roster][owner] = kept
        return True

    def live(self, roster: bytes, now_s: float) -> list[Kept]:
        """What is alive of a roster, sorted by peer id. Nodes of a revoked token are gone with the token."""
        holders = self._rosters.get(roster, {})
        for peer in [peer for peer, kept in holders.items() if not self._is_good(kept, now_s)]:
            del holders[peer]
        return [holders[peer] for peer in sorted(holders)]

    def lookup(self, model_root: bytes, layers: Sequence[LayerId], now_s: float) -> dict[LayerId, list[HolderRecord]]:
        """What each live node says of each layer, sorted by peer id."""
        live = self.live(self._name_of(model_root), now_s)
        return {layer: [of_layer(kept.record, layer, kept.expires_at_s) for kept in live] for layer in layers}

    def is_barred(self, peer: PeerId) -> bool:
        """Whether the member whose node we knew this peer to be has lost his token."""
        return self._gate is not None and peer in self._tokens and self._gate.is_revoked(self._tokens[peer])

    def _remember(self, peer: PeerId, token_id: str) -> None:
        if token_id:
            self._tokens.pop(peer, None)
            self._tokens[peer] = token_id
            if len(self._tokens) > limits.MAX_KEPT_RECORDS:
                del self._tokens[next(iter(self._tokens))]

    def _member_of(self, record: NodeRecord) -> str:
        """
        Raises:
            RecordRejected: no member of this swarm vouches for the owner, or one does where the swarm is open.
        """
        if self._gate is None:
            if record.voucher:
                raise RecordRejected("a member's record in an open swarm")
            return ""
        try:
            return self._gate.check_voucher(record.voucher, public_key_of(record.peer))
        except AuthenticationFailed as error:
            raise RecordRejected(f"a record of no member: {error}") from error

    def _is_good(self, kept: Kept, now_s: float) -> bool:
        return kept.is_timely(now_s) and not (self._gate is not None and self._gate.is_revoked(kept.token_id))

    def _make_room(self, roster: bytes, owner: PeerId, now_s: float) -> None:
        """
        Raises:
            RecordRejected: there is none, though what has expired was thrown out.
        """
        if self._refusal(roster, owner):
            for name in list(self._rosters):
                if not self.live(name, now_s):
                    del self._rosters[name]
        if refusal := self._refusal(roster, owner):
            raise RecordRejected(refusal)

    def _refusal(self, roster: bytes, owner: PeerId) -> str:
        num_kept = sum(map(len, self._rosters.values()))
        num_models = sum(owner in holders for holders in self._rosters.values())
        if len(self._rosters.get(roster, ())) >= limits.MAX_HOLDERS_PER_MODEL:
            return f"the model has {limits.MAX_HOLDERS_PER_MODEL} holders already"
        if num_kept >= limits.MAX_KEPT_RECORDS or num_models >= limits.MAX_MODELS_PER_HOLDER:
            return f"{num_kept} records are kept already, {num_models} of {owner}"
        return ""


def tag_of(data: bytes) -> bytes:
    """A short name for one signed record."""
    return blake3(data).digest()[:TAG_BYTES]


def _renewed(kept: Kept, index: int, pulse: bytes) -> Kept:
    """
    Raises:
        RecordRejected: the pulse does not lead to the one that is known.
    """
    if not kept.index < index <= limits.MAX_PULSE or earlier(pulse, index - kept.index) != kept.pulse:
        raise RecordRejected(f"a pulse {index} that is not of this record")
    return replace(kept, index=index, pulse=pulse)


def _check_time(kept: Kept, now_s: float) -> None:
    if not kept.is_timely(now_s):
        raise RecordRejected(f"a record that expires {kept.expires_at_s - now_s:.0f} s from now")
