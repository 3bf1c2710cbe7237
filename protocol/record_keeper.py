"""What a peer keeps for others and what it has read itself: one book, both sides of SYNC (PROTOCOL.md §7.3).

Sans-IO: `net/hivemind_dht.py` carries the bytes. Who sends is proven by libp2p, and a peer keeps only what its owner
told it: nobody stores for another. What it has read elsewhere it tells too; every reader checks every record itself.
"""

from collections.abc import Callable
from contextlib import suppress

from shoal.protocol.errors import AuthenticationFailed, Malformed, RecordRejected, ShoalError
from shoal.protocol.identity import peer_id_of, public_key_of
from shoal.protocol.ids import PeerId
from shoal.protocol.membership import MemberGate, Membership
from shoal.protocol.record_book import Kept, RecordBook
from shoal.protocol.record_seal import RecordSeal
from shoal.protocol.revocation_list import RevocationBook
from shoal.protocol.sync_messages import (
    SentRecord,
    Sign,
    Status,
    SyncReply,
    SyncRequest,
    decode_request,
    encode_reply,
)


class RecordKeeper:
    """Records of one swarm, and the latest of its revocation lists."""

    def __init__(self, clock: Callable[[], float], us: PeerId, membership: Membership | None = None) -> None:
        """`clock`: Unix time in seconds. `us`: who keeps. `membership`: of a private swarm; None: an open one, without
        members and revocations."""
        founder_key = membership.founder_key if membership is not None else None
        self.us = us
        self.seal = RecordSeal(membership.directory_secret if membership is not None else None)
        self.revocations = RevocationBook(founder_key) if founder_key is not None else None
        gate = MemberGate(founder_key, self.revocations) if founder_key is not None and self.revocations else None
        self.book = RecordBook(self.seal.name, gate)
        self._founder = peer_id_of(founder_key) if founder_key is not None else None
        self._clock = clock

    def answer(self, data: bytes, sender: PeerId) -> bytes:
        """Our reply to the bytes of a request; to what is no request, and to a stranger in a private swarm, a refusal
        that says nothing else."""
        try:
            request = decode_request(data)
        except Malformed:
            return encode_reply(SyncReply(Status.REFUSED))
        if not self.seal.is_word(request.word, sender, self.us):
            return encode_reply(SyncReply(Status.REFUSED))
        status = self._told(request, sender)
        self.take_revocations(request.revocations)
        live = {kept.tag: kept for kept in self.book.live(request.place, self._clock())}
        summary = tuple(Sign(kept.tag, kept.index, kept.pulse) for kept in live.values())
        return encode_reply(
            SyncReply(
                status,
                summary if request.is_summary_wanted else (),
                tuple(self._sent(live[tag]) for tag in request.tags if tag in live),
                self.list_number,
                self.sealed_revocations if self.list_number > request.list_number else b"",
            )
        )

    def unknown(self, roster: bytes, summary: tuple[Sign, ...]) -> list[bytes]:
        """Take the pulses of a summary; the tags of records that we lack."""
        now_s = self._clock()
        known = {kept.tag: kept.record.peer for kept in self.book.live(roster, now_s)}
        for sign in summary:
            if sign.tag in known:
                self.book.renew(roster, known[sign.tag], sign.index, sign.pulse, now_s)
        return [sign.tag for sign in summary if sign.tag not in known]

    def take(self, roster: bytes, records: tuple[SentRecord, ...]) -> None:
        """Take records that we asked for; those that are forged, expired or of another model are left out."""
        for sent in records:
            with suppress(ShoalError):
                owner = peer_id_of(sent.public_key)
                data = self.seal.open(sent.sealed, owner)
                self.book.add(data, owner, self._clock(), sent.index, sent.pulse, roster)

    @property
    def list_number(self) -> int:
        """Of the latest revocation list that we know; 0 for none."""
        return self.revocations.latest.number if self.revocations is not None and self.revocations.latest else 0

    @property
    def sealed_revocations(self) -> bytes:
        """That list, for others."""
        if self.revocations is None or self.revocations.latest is None or self._founder is None:
            return b""
        return self.seal.seal(self.revocations.latest.encoded, self._founder)

    def take_revocations(self, sealed: bytes) -> None:
        """Take a list that is later than ours; what is forged or earlier is nobody's news."""
        if sealed and self.revocations is not None and self._founder is not None:
            with suppress(RecordRejected, AuthenticationFailed):
                self.revocations.take(self.seal.open(sealed, self._founder))

    def _told(self, request: SyncRequest, sender: PeerId) -> Status:
        """Keep what the sender says of itself."""
        if not request.pulse:
            return Status.NOTHING
        now_s, index, pulse = self._clock(), request.index, request.pulse
        if not request.record:
            is_kept = self.book.renew(request.place, sender, index, pulse, now_s)
            return Status.KEPT if is_kept else Status.UNKNOWN
        try:
            self.book.add(self.seal.open(request.record, sender), sender, now_s, index, pulse, request.place)
        except ShoalError:
            return Status.REFUSED
        return Status.KEPT

    def _sent(self, kept: Kept) -> SentRecord:
        owner = kept.record.peer
        return SentRecord(public_key_of(owner), self.seal.seal(kept.data, owner), kept.index, kept.pulse)
