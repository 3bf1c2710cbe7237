"""A node whose model is in pieces: fetch what it is to hold, keep others from evicting it, and hash it again by and by.

Between choosing and loading. Knows the store and the holding; where pieces come from is `pulling.py`'s business.
"""

import asyncio
from contextlib import AsyncExitStack
from itertools import cycle

from shoal.experts.backend import ExpertBackend, PackedExpert
from shoal.experts.pieces.model import PieceModel
from shoal.experts.pieces.pieces import ExpertPiece, expert_pieces
from shoal.experts.pieces.pins import Pins
from shoal.experts.store import ModelStore
from shoal.experts.worker import Worker
from shoal.node.assignment import Holding
from shoal.node.keeper import Pack
from shoal.node.loading import StageProgress, load_one
from shoal.node.log_events import LibrarySaid, PieceDamaged, PiecesFetched, log_event
from shoal.node.pulling import fill
from shoal.protocol.ids import ExpertId, LayerId

REVERIFY_PAUSE_S = 60.0
"""Between two pieces that are hashed again: 154 experts, what 8 GB hold, are through in two and a half hours, at a
thousandth of a core."""


async def keep_filled(store: ModelStore, holding: Holding, name: str, progress: StageProgress) -> AsyncExitStack:
    """Bring the holding's pieces into the store and pin them, until the stack that is returned is closed; meanwhile
    hash them again, one after another. A model that is not in pieces needs nothing of it. `name`: the node's.

    Raises:
        As `pulling.fill`.
    """
    stack = AsyncExitStack()
    if not isinstance(store, PieceModel):
        return stack
    wanted = [(layer, expert) for layer, experts in holding.items() for expert in experts]
    pieces = expert_pieces(store.manifest, wanted)
    async with stack:
        pins = stack.enter_context(Pins(store.shelf.disk))
        await asyncio.to_thread(pins.hold, name, [piece.digest for piece in pieces])
        if missing := await asyncio.to_thread(store.missing, wanted):
            fetched = await fill(store, missing, lambda done, total: progress("fetching", done, total))
            log_event(PiecesFetched(fetched.num_pieces, fetched.size_bytes))
        verifying = asyncio.create_task(_reverify(store, pieces), name="reverify")
        stack.push_async_callback(_end, verifying)
        return stack.pop_all()


def packer(store: ModelStore, backend: ExpertBackend, worker: Worker) -> Pack:
    """Brings single experts into memory: fetched if the model is in pieces and this one is missing, then read, verified
    and packed on the kernel's thread."""

    async def pack(layer: LayerId, expert: ExpertId) -> PackedExpert:
        if isinstance(store, PieceModel) and (missing := await asyncio.to_thread(store.missing, [(layer, expert)])):
            await fill(store, missing, lambda done, total: None)
        return await worker.run(load_one, store, backend, layer, expert)

    return pack


async def _reverify(store: PieceModel, pieces: list[ExpertPiece]) -> None:
    """For ever. What is damaged on disk is removed there, and fetched again when the node starts again; what it serves
    is in memory and was verified before."""
    for piece in cycle(pieces):
        await asyncio.sleep(REVERIFY_PAUSE_S)
        try:
            if await asyncio.to_thread(store.shelf.store.verify, [piece.digest]):
                log_event(PieceDamaged(piece.name))
        except OSError as error:
            log_event(LibrarySaid("store", f"{piece.name} can not be read again", str(error)))


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
