"""A node that keeps the model's trunk too and gives it to clients: fetched beside its experts, pinned, then announced.

A node over a checkpoint directory has the trunk and gives it anyway; this is for a model in pieces. Knows the store and
the announcer; whom to ask is `seeding/peers.py`'s business.
"""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace

from shoal.experts.pieces.fetching import Fetched, fetch_pieces
from shoal.experts.pieces.model import PieceModel
from shoal.experts.pieces.pieces import TrunkPiece, trunk_pieces
from shoal.experts.pieces.pins import Pins
from shoal.experts.pieces.ranges import CheckpointSource
from shoal.node.announcer import Announcer
from shoal.node.log_events import FillFailed, SourcesNotOpened, TrunkKept, log_event
from shoal.node.seeding.peers import Peers
from shoal.node.weights.by_token import check_room
from shoal.node.weights.loading import StageProgress
from shoal.node.weights.model_sources import open_readers, sources_of
from shoal.protocol.errors import ShoalError

RETRY_S = 60.0
"""After a disk that was full, or sources that failed."""

PAUSE_LOOK_S = 0.5
"""A pause ends what is on its way within so long; what came stays."""


class TrunkKeeper:
    """One node's trunk. `run` it beside the node, when the swarm is known."""

    def __init__(
        self, store: PieceModel, announcer: Announcer, peers: Peers | None, name: str, progress: StageProgress
    ) -> None:
        """name: the node's; its pins bear it. peers: None: there are only the model's own sources."""
        self._store = store
        self._announcer = announcer
        self._peers = peers
        self._name = name
        self._progress = progress

    async def run(self) -> None:
        """Until the whole trunk is here and announced; then for ever, so that nobody evicts it."""
        pieces = trunk_pieces(self._store.manifest)
        with Pins(self._store.shelf.disk) as pins:
            await asyncio.to_thread(pins.hold, f"{self._name}.trunk", [piece.digest for piece in pieces])
            while missing := await self._missing(pieces):
                await self._until(lambda: self._announcer.is_present)
                try:
                    await self._bring(missing)
                except (ShoalError, OSError) as error:
                    log_event(FillFailed(type(error).__name__))
                    await asyncio.sleep(RETRY_S)
            self._announcer.note(replace(self._announcer.claim, gives_trunk=True))
            log_event(TrunkKept(len(pieces), sum(piece.size_bytes for piece in pieces)))
            await self._say()
            await asyncio.Event().wait()

    async def _say(self) -> None:
        try:
            await self._announcer.declare(self._announcer.claim)
        except ShoalError as error:  # its next turn says it
            log_event(FillFailed(type(error).__name__))

    async def _missing(self, pieces: list[TrunkPiece]) -> list[TrunkPiece]:
        there = {piece.digest for piece in await asyncio.to_thread(self._store.shelf.store.pieces)}
        return [piece for piece in pieces if piece.digest not in there]

    async def _bring(self, missing: list[TrunkPiece]) -> None:
        """Fetch, until all has come or the node is paused."""
        check_room(self._store.shelf, missing)
        fetching = asyncio.create_task(self._fetch(missing), name="fetch the trunk")
        try:
            while not fetching.done() and self._announcer.is_present:
                await asyncio.wait({fetching}, timeout=PAUSE_LOOK_S)
            if fetching.done():
                fetching.result()
        finally:
            fetching.cancel()
            await asyncio.wait({fetching})

    async def _fetch(self, missing: list[TrunkPiece]) -> Fetched:
        peers, total = self._peers, sum(piece.size_bytes for piece in missing)
        looking = None if peers is None else asyncio.create_task(peers.run(), name="look for the trunk")
        try:
            if peers is not None:
                await peers.begin()
            async with AsyncExitStack() as stack:
                sources = await self._sources(stack)
                return await fetch_pieces(
                    missing, sources, self._store.shelf.store, peers=peers,
                    progress=lambda arrived: self._progress("trunk", min(max(arrived, 0), total), total),
                )  # fmt: skip
        finally:
            if looking is not None:
                looking.cancel()
                await asyncio.wait({looking})

    async def _sources(self, stack: AsyncExitStack) -> list[CheckpointSource]:
        """The model's own sources, as far as they can be opened. Raises as `open_readers` where there are no peers."""
        words = self._store.model.sources
        try:
            readers = await stack.enter_async_context(open_readers(words))
        except ShoalError as error:
            if self._peers is None:
                raise
            if words:
                log_event(SourcesNotOpened(type(error).__name__))
            return []
        return list(sources_of(self._store, readers))

    async def _until(self, is_true: Callable[[], bool]) -> None:
        while not is_true():  # noqa: ASYNC110  # a pause has no event; as in `filling.py`
            await asyncio.sleep(PAUSE_LOOK_S)
