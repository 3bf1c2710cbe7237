"""Pieces from several sources at once into a store: every byte verified first, nothing asked for twice.

All sources take from one queue, in the order given, so the fastest brings the most. Peers are one source, which comes
before the others: it says what it has and what is left to them, and takes the rarest first. A source that lies is
dropped; one that fails is tried again after a pause, and dropped after some; its piece goes back to the front of the
queue and comes from another. What arrived is kept: whoever calls again fetches only the rest.
Knows pieces and sources; knows no models and no network.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from shoal.experts.pieces.arriving import Arrival
from shoal.experts.pieces.pieces import Piece
from shoal.experts.pieces.sources import PeerSource, PieceSource
from shoal.experts.pieces.store import PieceStore
from shoal.protocol.errors import (
    AccessRefused,
    CheckpointError,
    DiskFull,
    ModelNotFound,
    ShoalError,
    SourceBusy,
    SourceFailed,
    SourceLied,
)

FetchProgress = Callable[[int], None]
"""Told the bytes that arrived, of all sources together; fewer than before if a source turned out to have lied."""


def no_progress(arrived_bytes: int) -> None:
    """For those who do not want to know."""


OnStored = Callable[[Piece], None]
"""Told of every piece that is in the store now, as soon as it is."""


def unheard(piece: Piece) -> None:
    """For those who wait for all."""


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """How patient a fetch is."""

    streams_per_source: int = 2
    """Pieces at a time from each source: one arrives while the other is hashed and written. Memory: twice this many
    pieces, 44 MB each for DeepSeek-V3's experts."""
    max_failures: int = 4
    """In a row, then a source is dropped."""
    pause_s: float = 1.0
    """After the first failure; doubles with each more."""
    max_busy_s: float = 300.0
    """A source that asks for a longer pause is dropped, and so is one that asks `max_failures` times in a row."""

    look_again_s: float = 1.0
    """Where there are peers: how often it is asked again whether one has what nobody had."""


DEFAULT_SETTINGS = FetchSettings()


@dataclass(slots=True)
class SourceAccount:
    """What a source did."""

    name: str
    num_pieces: int = 0
    size_bytes: int = 0
    dropped: ShoalError | None = None
    """Why it is not asked any more."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a fetch did. `size_bytes`: of the pieces that came, without headers."""

    num_pieces: int
    size_bytes: int
    sources: tuple[SourceAccount, ...]


async def fetch_pieces(
    pieces: Iterable[Piece],
    sources: Sequence[PieceSource],
    store: PieceStore,
    settings: FetchSettings = DEFAULT_SETTINGS,
    progress: FetchProgress = no_progress,
    peers: PeerSource | None = None,
    on_stored: OnStored = unheard,
) -> Fetched:
    """Bring pieces that the store lacks into it. With `peers` this waits for as long as some piece is nowhere.

    Raises:
        SourceLied, SourceFailed, SourceBusy, AccessRefused, ModelNotFound: no source has what is missing, or none that
        is left; the error is the last source's. DiskFull: no room. All that came before is kept.
    *Cancellation:* what has been stored stays.
    """
    missing = await asyncio.to_thread(_missing, store, pieces)
    fetch = _Fetch(missing, sources, store, settings, progress, peers, on_stored)
    async with asyncio.TaskGroup() as group:
        for state in fetch.sources:
            for _ in range(
                settings.streams_per_source if state.peers is None else state.peers.num_streams(len(missing))
            ):
                group.create_task(fetch.work(state), name=f"fetch from {state.account.name}")
    fetch.raise_if_incomplete()
    return Fetched(fetch.num_stored, fetch.stored_bytes, tuple(fetch.accounts))


def _missing(store: PieceStore, pieces: Iterable[Piece]) -> list[Piece]:
    there = {stored.digest for stored in store.pieces()}
    return list({piece.digest: piece for piece in pieces if piece.digest not in there}.values())


@dataclass(slots=True)
class _Source:
    """A source's state, shared by its streams."""

    source: PieceSource
    account: SourceAccount
    failures: int = 0
    paused_until_s: float = 0.0
    """By the loop's clock; for all its streams."""
    lacks: set[bytes] = field(default_factory=set)
    """Digests that it said it does not have."""
    peers: PeerSource | None = None
    """The source itself, if it is that of peers."""
    num_idle: int = 0
    """Streams that wait for something to do."""
    piece_s: float = float("inf")
    """What its last piece took."""


class _Fetch:
    """One call of `fetch_pieces`: a queue, its workers and what they share."""

    def __init__(
        self,
        pieces: list[Piece],
        sources: Sequence[PieceSource],
        store: PieceStore,
        settings: FetchSettings,
        progress: FetchProgress,
        peers: PeerSource | None,
        on_stored: OnStored,
    ) -> None:
        self.sources = [_Source(source, SourceAccount(source.name)) for source in sources]
        if peers is not None:
            self.sources.insert(0, _Source(peers, SourceAccount(peers.name), peers=peers))
        self.accounts = [state.account for state in self.sources]
        self.num_stored = 0
        self.stored_bytes = 0
        self._pending = pieces
        self._in_flight = 0
        self._store = store
        self._settings = settings
        self._progress = progress
        self._peers = peers
        self._on_stored = on_stored
        self._fatal: Exception | None = None
        self._last: ShoalError | None = None
        self._arrived = 0
        self._changed = asyncio.Condition()

    async def work(self, state: _Source) -> None:
        """Take pieces and bring them, until there are none or the source is of no more use."""
        clock = asyncio.get_running_loop()
        while (piece := await self._take(state)) is not None:
            arrived = 0

            def count(size_bytes: int) -> None:
                nonlocal arrived
                arrived += size_bytes
                self._arrive(size_bytes)

            is_stored = False
            try:
                await self._bring(state, piece, count)
                is_stored = True
            except ShoalError as error:
                self._arrive(-arrived)
                state.paused_until_s = clock.time() + self._judge(state, piece, error)
            except OSError as error:  # the store's disk: every source would meet it
                self._fatal = error
            finally:
                if not is_stored:
                    self._tell_peers(state, piece, is_coming=False)
                await self._put_back(None if is_stored else piece)
            if (left_s := state.paused_until_s - clock.time()) > 0:
                await asyncio.sleep(left_s)

    def raise_if_incomplete(self) -> None:
        """What is to be told if something is missing."""
        if self._fatal is not None:
            raise self._fatal
        if self._pending:
            dropped = [account.dropped for account in self.accounts if account.dropped is not None]
            raise self._last or (dropped[-1] if dropped else SourceFailed("no source", "none was given"))

    async def _take(self, state: _Source) -> Piece | None:
        async with self._changed:
            while True:
                if self._fatal is not None or state.account.dropped is not None:
                    return None
                if (number := self._choice(state)) is not None:
                    self._in_flight += 1
                    piece = self._pending.pop(number)
                    self._tell_peers(state, piece, is_coming=True)
                    self._tell_left()
                    return piece
                if not self._in_flight and not self._may_have_later(state):
                    return None  # what is pending, nobody in flight can give back: this source lacks it
                await self._wait(state)

    def _choice(self, state: _Source) -> int | None:
        """Which of the pending pieces this source is asked for now."""
        pending = enumerate(self._pending)
        if state.peers is not None:
            had = [(state.peers.rarity(piece), i) for i, piece in pending if state.peers.has_now(piece)]
            return min(had)[1] if had else None
        offered = [(i, piece) for i, piece in pending if piece.digest not in state.lacks]
        if self._peers is None:
            return offered[0][0] if offered else None
        turns = [(turn, i) for i, piece in offered if (turn := self._peers.turn(piece)) is not None]
        return min(turns)[1] if turns else None

    def _tell_peers(self, state: _Source, piece: Piece, is_coming: bool) -> None:
        if self._peers is not None and state.peers is None:
            self._peers.goes_elsewhere(piece, is_coming)

    def _tell_left(self) -> None:
        if self._peers is not None:
            idle_s = (state.piece_s for state in self.sources if state.peers is None and state.num_idle)
            self._peers.note_left(len(self._pending), min(idle_s, default=float("inf")))

    def _may_have_later(self, state: _Source) -> bool:
        """Peers may get every piece; the others may have what they did not say they lack, when it is left to them."""
        return any(state.peers is not None or piece.digest not in state.lacks for piece in self._pending)

    async def _wait(self, state: _Source) -> None:
        """Until another stream has ended with its piece; or peers may have changed, of whom nobody tells us."""
        state.num_idle += 1
        self._tell_left()
        try:
            async with asyncio.timeout(None if self._peers is None else self._settings.look_again_s):
                await self._changed.wait()
        except TimeoutError:
            return
        finally:
            state.num_idle -= 1

    async def _put_back(self, piece: Piece | None) -> None:
        async with self._changed:
            self._in_flight -= 1
            if piece is not None:
                self._pending.insert(0, piece)
            self._changed.notify_all()

    async def _bring(self, state: _Source, piece: Piece, on_bytes: FetchProgress) -> None:
        begun_s = asyncio.get_running_loop().time()
        data = await state.source.fetch(piece, on_bytes)
        try:
            size_bytes = await asyncio.to_thread(self._keep, piece, data)
        except CheckpointError as error:
            raise SourceLied(state.source.name, piece.name) from error
        state.failures = 0
        state.piece_s = asyncio.get_running_loop().time() - begun_s
        state.account.num_pieces += 1
        state.account.size_bytes += size_bytes
        self.num_stored += 1
        self.stored_bytes += size_bytes
        self._on_stored(piece)

    def _keep(self, piece: Piece, data: bytearray | Arrival) -> int:
        """Blocking. Returns its length."""
        if isinstance(data, bytearray):
            self._store.put(piece.digest, data)
            return len(data)
        try:
            self._store.adopt(piece.digest, data.folder, data.name)
        finally:
            data.close()
        return data.size_bytes

    def _judge(self, state: _Source, piece: Piece, error: ShoalError) -> float:
        """What becomes of a source after an error; returns the pause that it gets."""
        match error:
            case DiskFull():
                self._fatal = error
            case _ if state.peers is not None:
                return 0.0  # it knows itself whom not to ask again
            case ModelNotFound():
                state.lacks.add(piece.digest)
            case SourceLied() | CheckpointError() | AccessRefused():
                state.account.dropped = error
            case SourceBusy() | SourceFailed():
                return self._pause_after(state, error)
            case _:  # the store's: no room
                self._fatal = error
                return 0.0
        self._last = error
        return 0.0

    def _pause_after(self, state: _Source, error: SourceBusy | SourceFailed) -> float:
        state.failures += 1
        is_too_long = isinstance(error, SourceBusy) and error.retry_after_s > self._settings.max_busy_s
        if state.failures >= self._settings.max_failures or is_too_long:
            state.account.dropped = self._last = error
            return 0.0
        own: float = self._settings.pause_s * 2.0 ** (state.failures - 1)
        return max(own, error.retry_after_s) if isinstance(error, SourceBusy) else own

    def _arrive(self, size_bytes: int) -> None:
        self._arrived += size_bytes
        self._progress(self._arrived)
