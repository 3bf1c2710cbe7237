"""A node whose model is in pieces: what it is to hold and lacks comes from peers, and from the model's sources where no
peer has it; every expert is served as soon as it is verified. Others are kept from evicting it, and it is hashed again
by and by.

Between choosing and loading. Knows the store and the holding; whom to ask is `seeding/peers.py`'s business, and where
else pieces come from `pulling.py`'s.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import count

from shoal.experts.pieces.fetching import Fetched, FetchSettings, OnStored, fetch_pieces
from shoal.experts.pieces.model import PieceModel
from shoal.experts.pieces.pieces import ExpertPiece, Piece, expert_pieces
from shoal.experts.pieces.pins import Pins
from shoal.experts.pieces.ranges import CheckpointSource
from shoal.experts.store import ModelStore
from shoal.experts.weight_formats import stored_bytes
from shoal.node.holdings.assignment import Holding
from shoal.node.log_events import LibrarySaid, PieceDamaged, PiecesFetched, SourcesNotOpened, log_event
from shoal.node.seeding.peers import Peers
from shoal.node.weights.loading import StageProgress
from shoal.node.weights.model_sources import open_readers, sources_of
from shoal.protocol.errors import ShoalError
from shoal.protocol.ids import ExpertId, LayerId

REVERIFY_PAUSE_S = 60.0
"""Between two pieces that are hashed again: 154 experts, what 8 GB hold, are through in two and a half hours, at a
thousandth of a core."""

PAUSE_LOOK_S = 0.5
"""A pause ends what is on its way within so long. What came of a piece from peers is kept."""

REOPEN_S = 60.0
"""Where the model's sources do not answer and peers do: after so long they are tried again."""

Place = tuple[LayerId, ExpertId]


def always() -> bool:
    """Of a node that is never paused."""
    return True


@dataclass(slots=True)
class Filled:
    """How far it has come, for the status. Bytes are of pieces; those of an unfinished one count."""

    num_missing: int = 0
    num_fetched: int = 0
    missing_bytes: int = 0
    fetched_bytes: int = 0
    peer_bytes: int = 0
    """Of these, from peers."""
    begun_s: float = 0.0
    """By the loop's clock."""
    ended_s: float | None = None

    def bytes_per_s(self, now_s: float) -> float:
        """Since it began, until it ended."""
        took_s = (now_s if self.ended_s is None else self.ended_s) - self.begun_s
        return self.fetched_bytes / took_s if self.begun_s and took_s > 0 else 0.0

    def left_s(self, now_s: float) -> float | None:
        """How long it will take at this rate; None: nothing is on its way, or at no rate."""
        rate = self.bytes_per_s(now_s)
        left_bytes = max(0, self.missing_bytes - self.fetched_bytes)
        return left_bytes / rate if rate and self.num_fetched < self.num_missing else None


class Supply:
    """What brings this node's experts onto its disk. Use `open` in a stack; one fetch at a time.

    A model that is a checkpoint directory has everything, and nothing is ever missing.
    """

    def __init__(self, store: ModelStore, name: str, progress: StageProgress) -> None:
        """name: the node's; its pins bear it."""
        self._store = store
        self._name = name
        self._progress = progress
        self._stack = AsyncExitStack()
        self._kept: dict[bytes, ExpertPiece] = {}
        self._settings = FetchSettings()
        self.peers: Peers | None = None
        """Who else may be asked; set when the swarm is known. None: nobody."""
        self.is_open: Callable[[], bool] = always
        """Whether anything may come now: a paused node takes nothing."""
        self.filled = Filled()

    async def __aenter__(self) -> "Supply":
        verifying = asyncio.create_task(self._reverify(), name="reverify")
        self._stack.push_async_callback(_end, verifying)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def keep(self, holding: Holding) -> None:
        """Keep others from evicting what is to be held, and hash it again by and by, from now on."""
        if isinstance(self._store, PieceModel):
            pieces = expert_pieces(self._store.manifest, _places(holding))
            new = {piece.digest: piece for piece in pieces if piece.digest not in self._kept}
            if new:
                pins = self._stack.enter_context(Pins(self._store.shelf.disk))
                await asyncio.to_thread(pins.hold, self._name, list(new))
                self._kept |= new

    async def missing(self, holding: Holding) -> Holding:
        """What of a holding is not on this machine."""
        if not isinstance(self._store, PieceModel):
            return {}
        missing: Holding = {}
        for piece in await asyncio.to_thread(self._store.missing, _places(holding)):
            missing[piece.layer] = (*missing.get(piece.layer, ()), piece.expert)
        return missing

    async def arriving(self, holding: Holding) -> AsyncGenerator[Place]:
        """The experts of a holding, those that are here first, the others as they come.

        Raises:
            As `fetch_pieces` and `open_readers`; with peers only what they can not help with: DiskFull, OSError.
        """
        await self.keep(holding)
        missing = await self.missing(holding)
        for place in _places(holding):
            if place[1] not in missing.get(place[0], ()):
                yield place
        if missing and isinstance(self._store, PieceModel):
            async for piece in self._fetch(self._store, expert_pieces(self._store.manifest, _places(missing))):
                yield piece.layer, piece.expert

    async def _fetch(self, model: PieceModel, pieces: Sequence[ExpertPiece]) -> AsyncGenerator[ExpertPiece]:
        by_digest = {piece.digest: piece for piece in pieces}
        arrived: asyncio.Queue[ExpertPiece | None] = asyncio.Queue()  # bounded by what is missing
        piece_bytes = stored_bytes(model.spec.expert, model.weight_format)
        filled = self.filled = Filled(len(pieces), 0, len(pieces) * piece_bytes)
        clock = asyncio.get_running_loop().time
        filled.begun_s = clock()

        def on_stored(piece: Piece) -> None:
            filled.num_fetched += 1
            filled.fetched_bytes = max(filled.fetched_bytes, filled.num_fetched * piece_bytes)
            arrived.put_nowait(by_digest[piece.digest])

        fetching = asyncio.create_task(self._fetch_all(model, pieces, filled, on_stored), name="fetch")
        fetching.add_done_callback(lambda _: arrived.put_nowait(None))
        try:
            while (piece := await arrived.get()) is not None:
                yield piece
            await fetching
        finally:
            filled.ended_s = clock()
            await _end(fetching)
        log_event(PiecesFetched(filled.num_fetched, filled.fetched_bytes, filled.peer_bytes))

    async def _fetch_all(
        self, model: PieceModel, pieces: Sequence[ExpertPiece], filled: Filled, on_stored: OnStored
    ) -> None:
        """From peers and sources, as long as it takes; sources that do not answer are tried again while peers give."""
        peers, before = self.peers, self.peers.bytes_taken if self.peers is not None else 0
        looking = None if peers is None else asyncio.create_task(peers.run(), name="look for pieces")

        def tell(arrived_bytes: int) -> None:
            filled.fetched_bytes = max(arrived_bytes, 0) + begun_bytes
            filled.peer_bytes = peers.bytes_taken - before if peers is not None else 0
            self._progress("fetching", min(filled.fetched_bytes, filled.missing_bytes), filled.missing_bytes)

        begun_bytes = 0
        try:
            if peers is not None:
                await peers.begin()
            while True:
                await self._until_open()
                begun_bytes = filled.num_fetched * (filled.missing_bytes // max(1, filled.num_missing))
                async with AsyncExitStack() as stack:
                    sources = await self._open(model, stack)
                    limit_s = None if sources or not model.model.sources else REOPEN_S
                    fetch = fetch_pieces(pieces, sources, model.shelf.store, self._settings, tell, peers, on_stored)
                    is_whole = await self._while_open(asyncio.create_task(fetch, name="fetch pieces"), limit_s)
                if not is_whole:
                    continue
                self._progress("fetching", filled.missing_bytes, filled.missing_bytes)
                return
        finally:
            if looking is not None:
                await _end(looking)

    async def _while_open(self, fetching: asyncio.Task[Fetched], limit_s: float | None) -> bool:
        """Whether it came to its end; else the node was paused meanwhile, or `limit_s` are over. Raises what it
        raises."""
        clock = asyncio.get_running_loop().time
        end_s = float("inf") if limit_s is None else clock() + limit_s
        try:
            while not fetching.done() and self.is_open() and clock() < end_s:
                await asyncio.wait({fetching}, timeout=PAUSE_LOOK_S)
            if fetching.done():
                fetching.result()
                return True
            return False
        finally:
            await _end(fetching)

    async def _until_open(self) -> None:
        is_open = self.is_open()
        while not is_open:
            await asyncio.sleep(PAUSE_LOOK_S)
            is_open = self.is_open()

    async def _open(self, model: PieceModel, stack: AsyncExitStack) -> list[CheckpointSource]:
        """The model's sources. Raises as `open_readers` where there are no peers."""
        try:
            readers = await stack.enter_async_context(open_readers(model.model.sources))
        except ShoalError as error:
            if self.peers is None:
                raise
            if model.model.sources:
                log_event(SourcesNotOpened(type(error).__name__))
            return []
        return list(sources_of(model, readers))

    async def _reverify(self) -> None:
        """For ever. What is damaged on disk is removed there, and fetched again when the node starts again; what it
        serves is in memory and was verified before."""
        for number in count():
            await asyncio.sleep(REVERIFY_PAUSE_S)
            if self._kept and isinstance(self._store, PieceModel):
                piece = list(self._kept.values())[number % len(self._kept)]
                await self._verify(self._store, piece)

    async def _verify(self, store: PieceModel, piece: ExpertPiece) -> None:
        try:
            if await asyncio.to_thread(store.shelf.store.verify, [piece.digest]):
                log_event(PieceDamaged(piece.name))
        except OSError as error:
            log_event(LibrarySaid("store", f"{piece.name} can not be read again", str(error)))


def _places(holding: Holding) -> list[Place]:
    return [(layer, expert) for layer, experts in holding.items() for expert in experts]


async def _end(task: asyncio.Task[None] | asyncio.Task[Fetched]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # whoever waited for it was told
