"""A model from a token alone: its small files, and for a client its trunk, from peers, onto this machine's shelf.

The token names the model's root and the list of its small files; all that comes is hashed before it is parsed, and the
manifest's root is the token's. Between the invite and the shelf. Used by `shoal node` and by the clients' verbs, before
they open the model like any other. Knows no terminal.
"""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from shoal.experts.family import CONFIG_FILE
from shoal.experts.manifest import MANIFEST_FILE, Manifest, decode_manifest
from shoal.experts.pieces.fetching import Fetched, fetch_pieces
from shoal.experts.pieces.model import PieceModel, check_config, spec_of
from shoal.experts.pieces.pieces import FilePiece, TrunkPiece, trunk_pieces
from shoal.experts.pieces.pins import Pins
from shoal.experts.pieces.shelf import Shelf, ShelfModel
from shoal.experts.safetensors_header import parse_object
from shoal.experts.small_files import LISTED
from shoal.node.seeding.connecting import connector_of, peers_of
from shoal.node.seeding.peers import LINE_PATIENCE_S, Peers, Wanted
from shoal.node.weights.loading import StageProgress
from shoal.protocol.errors import Busy, CheckpointError, DiskFull, InvalidRequest, Malformed, ShoalError, SourceFailed
from shoal.protocol.identity import Identity
from shoal.protocol.ids import LayerId
from shoal.protocol.invite import Invite
from shoal.protocol.model_files import MAX_FILE_BYTES, MAX_LIST_BYTES, decode_files
from shoal.protocol.net.discovery import Discover
from shoal.protocol.net.entry import enter_swarm
from shoal.protocol.net.throttle import Throttle

SILENCE_S = 60.0
"""So long without a byte of anybody, and it is given up. A peer that stalls is left for another after half of it; one
that is busy says so, and that it will give."""

LOOK_S = 2.0
"""Between two looks into the directory: a client waits for it."""

ASK_AGAIN_S = 0.2
"""Until it is seen whether a peer is free again."""


@dataclass(frozen=True, slots=True)
class TokenWish:
    """What is wanted by a token. clock: Unix time. silence_s: see `SILENCE_S`."""

    invite: Invite
    join: tuple[str, ...]
    clock: Callable[[], float]
    discover: Discover | None = None
    throttle: Throttle = field(default_factory=Throttle)
    silence_s: float = SILENCE_S


@asynccontextmanager
async def peers_by_token(wish: TokenWish, shelf: Shelf) -> AsyncIterator[Peers]:
    """The swarm that a token leads to, as a source of pieces; under a key of this moment, which leaves no trail.

    Raises:
        ConnectFailed: no peer of the token answers.
    """
    identity, root = Identity.from_seed(os.urandom(32)), wish.invite.model_root
    async with AsyncExitStack() as stack:
        entry = await stack.enter_async_context(
            enter_swarm(identity, wish.join, root, wish.clock, is_client=True, discover=wish.discover)
        )
        wanted = Wanted(root, (LayerId(0),), MAX_FILE_BYTES, identity.peer)
        connector = connector_of(identity, entry, wish.throttle)
        peers = await stack.enter_async_context(
            peers_of(wanted, entry.directory, connector, _uniform, shelf.disk, LOOK_S)
        )
        await peers.begin()
        looking = asyncio.create_task(peers.run(), name="look for peers")
        try:
            yield peers
        finally:
            looking.cancel()
            await asyncio.wait({looking})


async def fetch_small_files(wish: TokenWish, peers: Peers, shelf: Shelf, progress: StageProgress) -> ShelfModel:
    """Put the token's model on the shelf, without a byte of its weights. Raises as `take_small_files`; OSError."""
    manifest, files = await take_small_files(wish, peers, progress)
    return await asyncio.to_thread(shelf.add, default_name(manifest), manifest, files, ())


def default_name(manifest: Manifest) -> str:
    """What a model is called that nobody has named."""
    return f"{manifest.model_type}-{manifest.root.hex()[:8]}"


async def take_small_files(wish: TokenWish, peers: Peers, progress: StageProgress) -> tuple[Manifest, dict[str, bytes]]:
    """The token's manifest and the other small files, config.json among them; nothing is written.

    Raises:
        InvalidRequest: the token names no files. SourceLied, SourceFailed: nobody gives them. CheckpointError: what the
        token vouches for is no model, or another than its root.
    """
    if wish.invite.files is None:
        raise InvalidRequest(
            "this token does not say which config, manifest and tokenizer the model has: give --model, or ask for a"
            " token of a newer program"
        )
    raw = await _take(FilePiece(wish.invite.files, "the list of small files", MAX_LIST_BYTES), peers, wish)
    try:
        listed = [file for file in decode_files(raw) if file.name in LISTED]
    except Malformed as error:
        raise CheckpointError("the token", None, f"it vouches for what is no list of files: {error}") from error
    total, files = sum(file.size_bytes for file in listed), dict[str, bytes]()
    for file in listed:
        files[file.name] = await _take(FilePiece(file.digest, file.name, file.size_bytes), peers, wish)
        progress("files", sum(map(len, files.values())), total)
    return await asyncio.to_thread(_checked, wish.invite.model_root, files)


async def fetch_trunk(wish: TokenWish, peers: Peers, model: PieceModel, progress: StageProgress) -> None:
    """Bring the trunk that a client runs into the store: all layers but MTP's. What came before an error stays.

    Raises:
        SourceLied, SourceFailed: nobody has given a byte for a while. DiskFull, OSError: no room.
    """
    missing = await asyncio.to_thread(missing_trunk, model)
    if not missing:
        return
    check_room(model.shelf, missing)
    total, arrived = sum(piece.size_bytes for piece in missing), 0

    def tell(arrived_bytes: int) -> None:
        nonlocal arrived
        arrived = arrived_bytes
        progress("trunk", min(max(arrived, 0), total), total)

    with Pins(model.shelf.disk) as pins:
        pinned = trunk_pieces(model.manifest, range(model.spec.num_layers))
        await asyncio.to_thread(pins.hold, "trunk", [piece.digest for piece in pinned])
        fetching = asyncio.create_task(_fetch(missing, peers, model.shelf, tell), name="fetch the trunk")
        try:
            await unless_silent(fetching, lambda: arrived, peers, wish, "the trunk")
        finally:
            fetching.cancel()
            await asyncio.wait({fetching})


def missing_trunk(model: PieceModel) -> list[TrunkPiece]:
    """What of the trunk that a client runs is not in the store."""
    there = {piece.digest for piece in model.shelf.store.pieces()}
    pieces = trunk_pieces(model.manifest, range(model.spec.num_layers))
    return [piece for piece in pieces if piece.digest not in there]


async def _fetch(missing: list[TrunkPiece], peers: Peers, shelf: Shelf, tell: Callable[[int], None]) -> Fetched:
    return await fetch_pieces(missing, (), shelf.store, progress=tell, peers=peers)


def check_room(shelf: Shelf, missing: list[TrunkPiece]) -> None:
    """Raises DiskFull if the disk has no room for what is missing: better now than after an hour."""
    needed, free = sum(piece.size_bytes for piece in missing), shutil.disk_usage(shelf.root).free
    if needed > free:
        raise DiskFull(f"the trunk needs {needed / 1e9:,.2f} GB more and {shelf.root} has {free / 1e9:,.2f} GB free")


async def unless_silent(
    fetching: asyncio.Task[Fetched], arrived: Callable[[], int], peers: Peers, wish: TokenWish, what: str
) -> Fetched:
    """What comes of a fetch, for as long as bytes come. Raises as the fetch; as `_silence` when it is given up."""
    clock = asyncio.get_running_loop().time
    before, heard_s = arrived(), clock()
    while not fetching.done():
        await asyncio.wait({fetching}, timeout=min(1.0, wish.silence_s / 4))
        if arrived() != before:
            before, heard_s = arrived(), clock()
        if clock() - heard_s > _patience_s(wish, peers):
            raise _silence(what, peers)
    return fetching.result()


async def _take(piece: FilePiece, peers: Peers, wish: TokenWish) -> bytes:
    """A small file, verified, from whoever gives it; a peer that does not is followed by the next."""
    clock = asyncio.get_running_loop().time
    heard_s = clock()

    def hear(size_bytes: int) -> None:
        nonlocal heard_s
        heard_s = clock()

    while clock() - heard_s <= _patience_s(wish, peers):
        if peers.has_now(piece):
            try:
                async with asyncio.timeout(wish.silence_s):
                    return bytes(await peers.fetch(piece, hear))  # type: ignore[arg-type]  # of a file never an Arrival
            except (ShoalError, TimeoutError):
                continue  # `peers` knows whom not to ask again
        await asyncio.sleep(ASK_AGAIN_S)
    raise _silence(piece.name, peers)


def _patience_s(wish: TokenWish, peers: Peers) -> float:
    return max(wish.silence_s, LINE_PATIENCE_S) if isinstance(peers.failure, Busy) else wish.silence_s


def _silence(what: str, peers: Peers) -> ShoalError:
    """Why it was given up: the last lie, if that was all that came, else what went wrong last."""
    if peers.lie is not None:
        return peers.lie
    why = "nobody in the directory gives it" if peers.failure is None else str(peers.failure)
    return SourceFailed("peers", f"nobody has given {what} for a while: {why}")


def _checked(root: bytes, files: dict[str, bytes]) -> tuple[Manifest, dict[str, bytes]]:
    if not files.keys() >= {CONFIG_FILE, MANIFEST_FILE}:
        raise CheckpointError("the token", None, "it vouches for a model without config or manifest")
    manifest = decode_manifest(files.pop(MANIFEST_FILE))
    if manifest.root != root:
        raise CheckpointError(MANIFEST_FILE, None, f"its root is {manifest.root.hex()}, the token's {root.hex()}")
    config = parse_object(files[CONFIG_FILE], CONFIG_FILE)
    check_config(config, manifest)
    spec_of(config, manifest)
    return manifest, files


def _uniform() -> float:
    """A random number in [0, 1)."""
    return int.from_bytes(os.urandom(4), "big") / 2**32
