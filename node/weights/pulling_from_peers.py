"""A model, or a part of it, from the peers of a token's swarm, and from other sources for what no peer has.

What `pulling.py` is for sources alone: for whoever wants a copy of his own, or a stick for somebody else. Between the
token and the shelf. Nobody is told that we take, and we give nothing. Knows no terminal.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from shoal.experts.family import CONFIG_FILE
from shoal.experts.manifest import Manifest
from shoal.experts.pieces.fetching import Fetched, fetch_pieces
from shoal.experts.pieces.layout import LAYOUT_FILE
from shoal.experts.pieces.model import spec_of
from shoal.experts.pieces.pieces import ExpertPiece, Piece
from shoal.experts.pieces.pins import Pins
from shoal.experts.pieces.ranges import CheckpointSource
from shoal.experts.pieces.shelf import Shelf, ShelfModel
from shoal.experts.safetensors_header import parse_object
from shoal.experts.specs import ModelSpec
from shoal.experts.weight_formats import stored_bytes
from shoal.node.seeding.library import HEADS_BYTES
from shoal.node.seeding.measuring import expert_sizes, rate
from shoal.node.seeding.peers import PATIENCE_S, Peers, Wanted
from shoal.node.weights.by_token import TokenWish, default_name, peers_by_token, take_small_files, unless_silent
from shoal.node.weights.loading import StageProgress
from shoal.node.weights.model_sources import checkpoint_sources, full_word, open_readers
from shoal.node.weights.pulling import Plan, PullProgress, Wish, wished_pieces
from shoal.protocol.errors import CheckpointError, DiskFull, ShoalError
from shoal.protocol.ids import PeerId


@dataclass(frozen=True, slots=True)
class PeerPull:
    """A plan with the swarm entered and other sources open."""

    plan: Plan
    manifest: Manifest
    peers: Peers
    sources: tuple[CheckpointSource, ...]
    shelf: Shelf
    token: TokenWish
    _files: dict[str, bytes]
    _kept_words: tuple[str, ...]

    async def forecast_s(self) -> float | None:
        """Seconds that the missing pieces will take, by the rate of a part of one from each source and from some of its
        holders; None: nobody gives any now."""
        if not self.plan.missing:
            return 0.0
        had = next((piece for piece in self.plan.missing if self.peers.holders(piece)), None)
        rates = [await rate(self.peers, self.manifest, had)] if had is not None else []
        rates += [await _rate(source, self.plan.missing[0]) for source in self.sources]
        known = [each for each in rates if each is not None]
        return self.plan.missing_bytes / sum(known) if known else None

    async def run(self, progress: PullProgress) -> Fetched:
        """Fetch what is missing; what was wished for is not evicted meanwhile.

        Raises:
            As `fetch_pieces`. SourceLied, SourceFailed: nobody has given a byte for a while. DiskFull: it can not fit.
            What came before an error stays, and the next run goes on there.
        """
        plan, arrived = self.plan, 0
        if plan.missing_bytes > plan.free_bytes:
            raise DiskFull(
                f"{plan.name} needs {plan.missing_bytes / 1e9:,.2f} GB more and {self.shelf.root} has"
                f" {plan.free_bytes / 1e9:,.2f} GB free"
            )

        def tell(arrived_bytes: int) -> None:
            nonlocal arrived
            arrived = arrived_bytes
            progress(min(max(arrived, 0), plan.missing_bytes), plan.missing_bytes)

        await asyncio.to_thread(self._put_on_shelf)
        with Pins(self.shelf.disk) as pins:
            await asyncio.to_thread(pins.hold, "pull", [piece.digest for piece in plan.pieces])
            fetch = fetch_pieces(plan.missing, self.sources, self.shelf.store, progress=tell, peers=self.peers)
            fetching = asyncio.create_task(fetch, name="pull from peers")
            patience_s = max(self.token.silence_s, PATIENCE_S + 30.0) if self.sources else self.token.silence_s
            wish = replace(self.token, silence_s=patience_s)
            try:
                what = f"more of {plan.name} ({plan.num_nowhere} pieces of it nobody had)"
                return await unless_silent(fetching, lambda: arrived, self.peers, wish, what)
            finally:
                fetching.cancel()
                await asyncio.wait({fetching})

    def _put_on_shelf(self) -> None:
        self.shelf.add(self.plan.name, self.manifest, self._files, self._kept_words)
        for source in self.sources:
            source.keep()


@asynccontextmanager
async def planned_with_peers(
    wish: Wish, token: TokenWish, shelf: Shelf, progress: StageProgress
) -> AsyncIterator[PeerPull]:
    """As `planned_from`, having entered the swarm. Raises also ConnectFailed: no peer of the token answers."""
    root = token.invite.model_root
    if wish.root is not None and not root.startswith(wish.root):
        raise CheckpointError("the token", None, f"its root is {root.hex()}, not {wish.root.hex()}…")
    async with peers_by_token(token, shelf) as peers, planned_from(peers, wish, token, shelf, progress) as pull:
        yield pull


@asynccontextmanager
async def planned_from(
    peers: Peers, wish: Wish, token: TokenWish, shelf: Shelf, progress: StageProgress
) -> AsyncIterator[PeerPull]:
    """Find out what the model is and what of it is missing here. No weight is kept, and nothing is on the shelf yet.

    wish: its name may be empty; its sources come after the peers.

    Raises:
        InvalidRequest: the token names no files, or there is no such expert. As `take_small_files`, `open_readers`.
    """
    root = token.invite.model_root
    known = next((model for model in shelf.models() if model.root == root), None)
    async with AsyncExitStack() as stack:
        manifest, files = await _description(known, token, peers, progress)
        spec = spec_of(parse_object(files[CONFIG_FILE], CONFIG_FILE), manifest)
        name = wish.name or (known.name if known else default_name(manifest))
        shelf.check(name, root)
        words = wish.sources or (known.sources if known else ())
        readers = await stack.enter_async_context(open_readers(words)) if words else []
        sources = checkpoint_sources(readers, manifest, spec, shelf, files.get(LAYOUT_FILE))
        most_bytes = stored_bytes(spec.expert, manifest.weight_format) + HEADS_BYTES
        peers.widen(Wanted(root, spec.moe_layers, most_bytes, _NOBODY))
        await peers.begin()
        pieces = wished_pieces(wish, manifest, spec)
        plan = await _plan(name, manifest, spec, pieces, peers, sources, shelf)
        yield PeerPull(plan, manifest, peers, sources, shelf, token, files, tuple(map(full_word, words)))


_NOBODY = PeerId("somebody who only takes")
"""Who took is not in the directory: no record is our own."""


async def _description(
    known: ShelfModel | None, token: TokenWish, peers: Peers, progress: StageProgress
) -> tuple[Manifest, dict[str, bytes]]:
    """Manifest and small files, of the shelf or else of peers."""
    if known is None:
        return await take_small_files(token, peers, progress)
    names = (CONFIG_FILE, LAYOUT_FILE)
    files = {name: (known.directory / name).read_bytes() for name in names if (known.directory / name).is_file()}
    return await asyncio.to_thread(known.manifest), files


async def _plan(
    name: str, manifest: Manifest, spec: ModelSpec, pieces: Sequence[Piece], peers: Peers,
    sources: Sequence[CheckpointSource], shelf: Shelf,
) -> Plan:  # fmt: skip
    there = {piece.digest for piece in await asyncio.to_thread(shelf.store.pieces)}
    missing = tuple({piece.digest: piece for piece in pieces if piece.digest not in there}.values())
    told = await expert_sizes(peers, manifest, spec, missing)
    most_bytes = stored_bytes(spec.expert, manifest.weight_format)
    sizes, num_nowhere = 0, 0
    for piece in missing:
        of_source = await _size(sources, piece) if not peers.holders(piece) else None
        num_nowhere += of_source is None and not peers.holders(piece)
        exact = told.get(piece.digest) if isinstance(piece, ExpertPiece) else piece.size_bytes
        sizes += exact or of_source or most_bytes
    free_bytes = shutil.disk_usage(shelf.root).free
    return Plan(name, manifest.root, tuple(pieces), missing, sizes, free_bytes, num_nowhere)


async def _size(sources: Sequence[CheckpointSource], piece: Piece) -> int | None:
    """What a piece takes in the store, by the first source that says it."""
    for source in sources:
        try:
            return await source.piece_bytes(piece)
        except ShoalError:
            continue
    return None


async def _rate(source: CheckpointSource, piece: Piece) -> float | None:
    try:
        return await source.measure(piece)
    except ShoalError:
        return None
