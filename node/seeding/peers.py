"""The peers of a swarm as one source of pieces: who has what by the directory, whom to ask, and what became of it.

Between the fetcher and the channels. A piece is taken from one peer at a time, the fastest that is free, and several
pieces at once; what one leaves unfinished another continues. Every piece is hashed here: the peer that gave a wrong
byte is dropped. What nobody has is left to the other sources, but to one of those who want it first: else each of fifty
newcomers would take it from the hub.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

from shoal.experts.pieces.arriving import Arrival
from shoal.experts.pieces.disk import FolderDisk
from shoal.experts.pieces.pieces import ExpertPiece, Piece, TrunkPiece
from shoal.experts.pieces.sources import OnBytes
from shoal.node.log_events import PeerLied, log_event
from shoal.node.seeding.first_copies import FirstCopies, Helping
from shoal.node.seeding.last_pieces import JUDGE_S, LastPieces
from shoal.node.seeding.orders import chance_of, rank, reversed_rank
from shoal.node.seeding.standing import Standing
from shoal.node.seeding.taking import Partial, Taking
from shoal.node.seeding.view import View
from shoal.protocol.errors import ModelNotFound, ShoalError, SourceFailed, SourceLied
from shoal.protocol.ids import LayerId, PeerId
from shoal.protocol.net.channel import PieceChannel, PieceConnector
from shoal.protocol.net.directory import Directory

NUM_STREAMS, MAX_STREAMS, PIECES_PER_STREAM = 8, 24, 12
"""Pieces at a time: as many peers' uplinks, and 352 MB of DeepSeek-V3's experts in memory; who wants more than 96, a
twelfth of them, 1056 MB at most: eight homes' uplinks are not half of a line of 350 Mbit/s."""

CONNECT_TIMEOUT_S = 10.0

PATIENCE_S = 120.0
"""So long after the last byte of any peer, and the last piece that any got, what others said they would get is taken
from elsewhere all the same."""

LINE_PATIENCE_S = 600.0
"""The same for what some peer has: whoever is busy gives to somebody, and we wait for our turn."""

LOOK_S = 5.0
"""Between two looks into the directory while pieces are missing, with half of it as jitter."""

NUM_TRIED = 8
"""Peers whose pace is learned, by a piece each, before the fastest of them come first; others count as the median."""

MAX_CHANNELS = 32
"""Connections that are kept; beyond it the one that was not used longest is closed."""

MAX_PARTIALS = 4
"""Unfinished pieces that are kept for the next peer."""
SLOW_FACTOR = 8.0
"""A peer that is so many times slower than another that has the piece and is free is left for it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What peers are asked for. `max_piece_bytes`: the most that a piece of this model has."""

    model_root: bytes
    layers: tuple[LayerId, ...]
    max_piece_bytes: int
    me: PeerId


def nothing_given() -> int:
    """Of somebody who takes and gives nothing."""
    return 0


class Peers:
    """Implements `PeerSource`. Use `run` beside a fetch; `aclose` at the end.

    Limits: `NUM_STREAMS` pieces at a time, one connection to a peer.
    """

    def __init__(
        self, wanted: Wanted, directory: Directory, connector: PieceConnector, draw: Callable[[], float],
        given_bytes: Callable[[], int] = nothing_given,
        patience_s: float = PATIENCE_S, look_s: float = LOOK_S, disk: FolderDisk | None = None,
    ) -> None:  # fmt: skip
        """draw: a number in 0..1, for jitter. given_bytes: what this node gave to others until now. disk: the store's,
        where the trunk comes to part by part; None: nothing of the trunk is asked for."""
        self._disk = disk
        self._wanted = wanted
        self._directory = directory
        self._connector = connector
        self._draw = draw
        self._given_bytes = given_bytes
        self._first = FirstCopies(wanted.max_piece_bytes)
        self._helping = Helping(chance_of(wanted.me))
        self._last = LastPieces()
        self._elsewhere: dict[bytes, ExpertPiece] = {}
        self._patience_s = patience_s
        self._look_s = look_s
        self._clock = asyncio.get_running_loop().time
        self._view = View()
        self._standings: dict[PeerId, Standing] = {}
        self._channels: dict[PeerId, asyncio.Future[PieceChannel]] = {}
        self._partials: OrderedDict[bytes, Partial] = OrderedDict()
        self._gave_s = self._clock()
        self.bytes_taken = 0
        """Of experts, from all peers."""
        self.failure: ShoalError | None = None
        """What went wrong last."""
        self.lie: SourceLied | None = None
        """The last wrong piece."""

    @property
    def name(self) -> str:
        return "peers"

    @property
    def bytes_read(self) -> int:
        return self.bytes_taken

    def num_streams(self, num_pieces: int) -> int:
        return min(MAX_STREAMS, max(NUM_STREAMS, num_pieces // PIECES_PER_STREAM))

    @property
    def num_trunk_givers(self) -> int:
        """Peers that say they give the trunk."""
        return len(self._view.trunk)

    def standing(self, peer: PeerId) -> Standing:
        """What is known of a peer."""
        return self._standings.setdefault(peer, Standing())

    def widen(self, wanted: Wanted) -> None:
        """From now on these layers are looked for, and pieces of this size expected."""
        self._wanted, self._first = wanted, FirstCopies(wanted.max_piece_bytes)

    async def begin(self) -> None:
        """Before a fetch: see who is there, and be patient from now on."""
        with suppress(ShoalError):  # a directory that does not answer may do so the next time
            await self.look()
        self._gave_s = self._clock()

    async def run(self) -> None:
        """Look into the directory, for ever. Cancellation: nothing stays behind."""
        while True:
            await asyncio.sleep(self._look_s * (0.75 + self._draw() / 2))
            with suppress(ShoalError):  # as above; the old view stands
                await self.look()

    async def look(self) -> None:
        """See who has what now.

        Raises:
            NetworkError: the directory does not answer.
        """
        found = await self._directory.lookup(self._wanted.model_root, self._wanted.layers)
        view = View.of(chain.from_iterable(found.values()), self._wanted.me)
        if view.has_more_than(self._view):
            self._gave_s = self._clock()  # others get on
        self._view = view
        self._note_passed()

    def _note_passed(self) -> None:
        now_s = self._clock()
        self._first.count_given(self._given_bytes(), now_s)
        pieces = [self._elsewhere[digest] for digest in self._first.unpassed(now_s)]
        self._helping.judge(lambda digest: bool(self.holders(self._elsewhere[digest])), now_s)
        self._first.forget([each.digest for each in pieces if self.holders(each) or not self._rivals(each)])

    async def aclose(self) -> None:
        """Close all connections."""
        channels = list(self._channels.values())
        self._channels.clear()
        for opening in channels:
            opening.cancel()
        for found in await asyncio.gather(*channels, return_exceptions=True):
            if not isinstance(found, BaseException):
                await found.aclose()
        for partial in self._partials.values():
            await asyncio.to_thread(partial.note)
            partial.close()
        self._partials.clear()

    def has_now(self, piece: Piece) -> bool:
        now_s = self._clock()
        return any(self._is_free(peer, piece, now_s) for peer in self.holders(piece))

    def rarity(self, piece: Piece) -> tuple[int, bytes]:
        return len(self.holders(piece)), rank(piece, self._wanted.me)

    def turn(self, piece: Piece) -> tuple[int, bytes] | None:
        """See `PeerSource`. Of those who say that they are about to get a piece, the first by a hash of both fetches it
        from elsewhere, and the others take it from there; while it has others to pass on, one of those does that has
        fetched its own. Whoever waits in vain fetches it too."""
        if isinstance(piece, ExpertPiece):
            self._helping.wants(piece.digest)
        ours, waited_s = rank(piece, self._wanted.me), self._clock() - self._gave_s
        is_last = self._last.are(self._helping.num_left)
        if self._is_held(piece):
            if waited_s > LINE_PATIENCE_S:
                return 0, ours
            is_left = is_last and isinstance(piece, ExpertPiece) and not self.has_now(piece)
            return (3, ours) if is_left and self._helping.has_room else None
        rivals = self._rivals(piece)
        if not rivals or waited_s > self._patience_s:
            return 0, ours
        if not self._first.has_room and not is_last:
            return None
        before = sorted(theirs for peer in rivals if (theirs := rank(piece, peer)) < ours)
        if not before:
            return 1, ours
        return (2, reversed_rank(before[0])) if self._helping.has_room else None

    def goes_elsewhere(self, piece: Piece, is_coming: bool) -> None:
        """See `PeerSource`."""
        if is_coming and isinstance(piece, ExpertPiece) and self._is_held(piece):
            self._helping.spends()
        elif is_coming and isinstance(piece, ExpertPiece) and self._rivals(piece):
            self._first.fetches(piece.digest, self._clock())
            if any(rank(piece, peer) < rank(piece, self._wanted.me) for peer in self._rivals(piece)):
                self._helping.begins(piece.digest, self._clock())
            self._elsewhere[piece.digest] = piece
        else:
            self._first.forget([piece.digest])

    def note_left(self, num_pending: int, elsewhere_s: float) -> None:
        """See `PeerSource`."""
        self._last.note(num_pending, elsewhere_s)

    def _is_held(self, piece: Piece) -> bool:
        return any(not self.standing(peer).is_dropped for peer in self.holders(piece))

    def _rivals(self, piece: Piece) -> list[PeerId]:
        """Who else says that it is about to get it."""
        return [peer for peer in self._view.getting(piece) if not self.standing(peer).is_dropped]

    async def size(self, piece: Piece) -> int:
        """The most that it can have: what it has exactly, its first chunk says."""
        return self._wanted.max_piece_bytes if isinstance(piece, ExpertPiece) else piece.size_bytes

    async def fetch(self, piece: Piece, on_bytes: OnBytes) -> bytearray | Arrival:
        """A piece, verified. Raises as `PieceSource.fetch`; whoever did not give it is not free for a while.

        *Cancellation:* what has come stays for the next call, in memory, or, of the trunk, on disk.
        """
        peer = self._fastest(piece)
        if peer is None:
            raise ModelNotFound(f"no peer has {piece.name} now")
        standing, partial = self.standing(peer), self._partial_for(piece, peer)
        standing.num_taking += 1
        try:
            await self._take(peer, piece, partial, on_bytes)
            await self._check(peer, piece, partial)
        except ShoalError as error:
            self._keep(piece, partial)
            self.failure = error
            standing.failed(error, piece.digest, self._clock(), self._draw())
            raise error if isinstance(error, SourceLied) else SourceFailed(f"peer {peer}", str(error)) from error
        except BaseException:
            self._keep(piece, partial)
            raise
        finally:
            standing.num_taking -= 1
        standing.succeeded()
        return partial.data if partial.file is None else partial.file

    async def _take(self, peer: PeerId, piece: Piece, partial: Partial, on_bytes: OnBytes) -> None:
        begun_s, taken = self._clock(), 0

        def count(size_bytes: int) -> None:
            nonlocal taken
            taken += size_bytes
            self.bytes_taken += size_bytes if isinstance(piece, ExpertPiece) else 0
            self._gave_s = self._clock()
            on_bytes(size_bytes)
            if self._is_too_slow(peer, piece, taken, self._gave_s - begun_s):
                raise SourceFailed(f"peer {peer}", "another is much faster")
            self._last.flies(piece.digest, partial.missing_bytes, taken, self._gave_s - begun_s)
            if self._helping.has_room and self._last.is_better_elsewhere(piece.digest):
                raise SourceFailed(f"peer {peer}", "another source is much faster")

        channel = await self.channel(peer)
        try:
            most_bytes = await self.size(piece)
            await Taking(channel, self._wanted.model_root, piece.digest, most_bytes, count).run(partial)
        except BaseExceptionGroup as group:
            raise _first_error(group) from None
        finally:
            self._last.ends(piece.digest)
            if taken:
                self.standing(peer).gave(taken, self._clock() - begun_s)

    async def _check(self, peer: PeerId, piece: Piece, partial: Partial) -> None:
        is_small = partial.file is None
        if (partial.digest() if is_small else await asyncio.to_thread(partial.digest)) == piece.digest:
            return
        givers = set(partial.givers)
        partial.forget()
        if givers == {peer}:
            log_event(PeerLied(peer, piece.name))
            self.lie = SourceLied(f"peer {peer}", piece.name)
            raise self.lie
        for giver in givers:  # one of them: it will show when each gives a whole one
            self.standing(giver).is_doubted = True
        raise SourceFailed(f"peer {peer}", f"{piece.name} was put together from several, and one gave wrong bytes")

    def holders(self, piece: Piece) -> set[PeerId]:
        """Who may be asked for it."""
        if self._disk is None and isinstance(piece, TrunkPiece):
            return set()
        return self._view.holders(piece)

    def _is_free(self, peer: PeerId, piece: Piece, now_s: float) -> bool:
        standing = self.standing(peer)
        return not standing.num_taking and standing.may_be_asked(piece.digest, now_s)

    def _fastest(self, piece: Piece) -> PeerId | None:
        """Of those that are free, the fastest, or while few are known one that was not tried yet."""
        now_s = self._clock()
        free = [peer for peer in sorted(self.holders(piece)) if self._is_free(peer, piece, now_s)]

        rates = sorted(rate for each in self._standings.values() if (rate := each.rate_bytes_per_s) is not None)
        untried = rates[len(rates) // 2] if len(rates) >= NUM_TRIED else float("inf")

        def pace(peer: PeerId) -> tuple[float, bytes]:
            rate = self.standing(peer).rate_bytes_per_s
            return (untried if rate is None else rate), rank(piece, peer)

        return max(free, key=pace, default=None)

    def _is_too_slow(self, peer: PeerId, piece: Piece, taken: int, took_s: float) -> bool:
        if took_s < JUDGE_S:
            return False
        now_s = self._clock()
        rates = [
            self.standing(other).rate_bytes_per_s or 0.0
            for other in self.holders(piece)
            if other != peer and self._is_free(other, piece, now_s)
        ]
        return max(rates, default=0.0) > SLOW_FACTOR * taken / took_s

    def _partial_for(self, piece: Piece, peer: PeerId) -> Partial:
        """What others left of it; nothing, if one of them or this one is doubted."""
        found = self._partials.pop(piece.digest, None) or self._begun(piece)
        if found.givers <= {peer}:
            return found
        standings = [self.standing(each) for each in (*found.givers, peer)]
        if not any(each.is_doubted or each.is_dropped for each in standings):
            return found
        found.forget()
        return found

    def _begun(self, piece: Piece) -> Partial:
        """What an earlier run left of it, if that is on disk."""
        if self._disk is not None and isinstance(piece, TrunkPiece):
            return Partial.into(Arrival(self._disk, piece.digest))
        return Partial()

    def _keep(self, piece: Piece, partial: Partial) -> None:
        if not partial.is_begun:
            partial.close()
            return
        self._partials[piece.digest] = partial
        while len(self._partials) > MAX_PARTIALS:
            self._partials.popitem(last=False)[1].close()

    async def channel(self, peer: PeerId) -> PieceChannel:
        """The connection to a peer, opened if need be."""
        opening = self._channels.pop(peer, None)
        if opening is None or not _is_of_use(opening):
            addresses = self._view.addresses.get(peer, ())
            connecting = self._connector.connect(peer, addresses, CONNECT_TIMEOUT_S)
            opening = asyncio.ensure_future(connecting)
        self._channels[peer] = opening  # the last one now
        channel = await asyncio.shield(opening)
        await self._close_idle()
        return channel

    async def _close_idle(self) -> None:
        idle = [peer for peer in self._channels if not self.standing(peer).num_taking]
        for peer in idle[: max(0, len(self._channels) - MAX_CHANNELS)]:
            opening = self._channels.pop(peer)
            if _is_of_use(opening) and opening.done():
                await opening.result().aclose()
            opening.cancel()


def _is_of_use(opening: "asyncio.Future[PieceChannel]") -> bool:
    if not opening.done():
        return True
    if opening.cancelled() or opening.exception() is not None:
        return False
    return not (opening.result().is_closed or opening.result().is_draining)


def _first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
