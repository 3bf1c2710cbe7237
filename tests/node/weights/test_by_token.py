"""A model from a token alone: from peers that give it, past those that lie, leave, stall or have nothing.

Real seeders over a real model, channels without a network, under a virtual clock.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from shoal.experts.manifest import MANIFEST_FILE, Manifest, write_manifest
from shoal.experts.manifest_maker import make_manifest
from shoal.experts.pieces.model import PieceModel
from shoal.experts.pieces.pieces import trunk_pieces
from shoal.experts.pieces.shelf import Shelf
from shoal.experts.small_files import SmallFiles
from shoal.experts.store import ModelStore
from shoal.node.announcer import Announcer, Claim, Load
from shoal.node.daemon import no_progress
from shoal.node.metrics import NodeMetrics
from shoal.node.seeding.library import Library
from shoal.node.seeding.peers import Peers, Wanted
from shoal.node.seeding.seeder import Seeder
from shoal.node.serving.admission import Admission, AdmissionLimits, Wire
from shoal.node.weights.by_token import (
    SILENCE_S,
    TokenWish,
    fetch_small_files,
    fetch_trunk,
    missing_trunk,
)
from shoal.protocol.dtypes import DType
from shoal.protocol.errors import (
    ChannelClosed,
    CheckpointError,
    ConnectFailed,
    DeadlineExceeded,
    InvalidRequest,
    NotHeld,
    SourceFailed,
    SourceLied,
)
from shoal.protocol.frames import Buffer
from shoal.protocol.identity import Identity
from shoal.protocol.ids import LayerId, PeerId
from shoal.protocol.invite import Invite
from shoal.protocol.messages import Chunk, Dispatch, Fetch
from shoal.protocol.model_files import MAX_FILE_BYTES, decode_files, encode_files, list_digest
from shoal.protocol.net.channel import PieceChannel, PieceReply, PieceRequest, Reply, Traffic
from shoal.protocol.net.memory_directory import MemoryDirectory
from shoal.protocol.record_book import RecordBook
from shoal.simulations.virtual.loop import run_virtual
from tests.checkpoints import SHAPES, write_checkpoint

EPOCH_S = 1_800_000_000.0
LIMIT_S = 100_000.0
ME = Identity.from_seed(b"m" * 32)
TOKENIZER = b'{"a tokenizer": "of no use"}'

Give = Callable[[PieceRequest], Coroutine[object, object, PieceReply]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", SHAPES["ragged_fp8_mtp_sharded"], seed=8)
    write_manifest(make_manifest(tmp_path / "model"), tmp_path / "model" / MANIFEST_FILE)
    (tmp_path / "model" / "tokenizer.json").write_bytes(TOKENIZER)
    (tmp_path / "model" / "secret.txt").write_bytes(b"nobody asked for this")
    return tmp_path / "model"


@dataclass
class Swarm:
    """Peers by how they answer. `given_bytes`: of chunks that arrived, by peer."""

    model: ModelStore
    shelf: Shelf
    book: RecordBook = field(default_factory=RecordBook)
    gives: dict[PeerId, Give] = field(default_factory=dict)
    given_bytes: dict[PeerId, int] = field(default_factory=dict)

    @property
    def manifest(self) -> Manifest:
        return self.model.manifest

    async def add(self, seed: bytes, give: Give, gives_trunk: bool = True) -> PeerId:
        """A holder of one expert that answers so."""
        identity = Identity.from_seed(seed.ljust(32))
        layer = self.model.spec.moe_layers[0]
        claim = Claim(
            identity.peer, self.manifest.root, {layer: (0,)}, self.model.weight_format, 0, ("nowhere:1",),  # type: ignore[dict-item]  # an id
            gives_trunk=gives_trunk,
        )  # fmt: skip
        directory = MemoryDirectory(self.book, identity, lambda: EPOCH_S)
        await Announcer(directory, claim, lambda: Load(0, 0)).announce()
        self.gives[identity.peer] = give
        return identity.peer

    async def connect(self, peer: PeerId, addresses: Sequence[str], timeout_s: float) -> PieceChannel:
        if peer not in self.gives:
            raise ConnectFailed("gone")
        return Channel(self, peer)

    async def aclose(self) -> None:
        """Nothing is open."""


class Channel:
    """To one peer of a `Swarm`, without a network."""

    def __init__(self, swarm: Swarm, peer: PeerId) -> None:
        self._swarm = swarm
        self.peer = peer
        self.traffic = Traffic()
        self.dtypes: frozenset[DType] = frozenset()
        self.is_draining = False

    @property
    def is_closed(self) -> bool:
        return self.peer not in self._swarm.gives

    def begin(self, message: Dispatch, body: Sequence[Buffer]) -> "asyncio.Future[Reply] | None":
        return None

    async def request(self, message: Dispatch, body: Sequence[Buffer]) -> Reply:
        raise ChannelClosed("no work is asked for here")

    async def fetch(self, message: Fetch) -> PieceReply:
        if self.is_closed:
            raise ChannelClosed("gone")
        try:
            async with asyncio.timeout(message.deadline_ms / 1000):
                await asyncio.sleep(0.01)
                reply = await self._swarm.gives[self.peer](PieceRequest(ME.peer, message, bytes(32), 0.0))
        except TimeoutError as error:
            raise DeadlineExceeded("no answer in time") from error
        self._swarm.given_bytes[self.peer] = self._swarm.given_bytes.get(self.peer, 0) + reply.message.size
        return reply

    async def ping(self, timeout_s: float) -> float:
        return 0.0

    async def aclose(self) -> None:
        """Nothing is open."""


def in_swarm(model: Path, test: Callable[[Swarm, Give], Coroutine[object, object, None]]) -> None:
    """`test` gets an empty shelf, and how an honest peer answers."""

    async def run() -> None:
        with ModelStore.open(model, model) as store:
            clock, metrics = asyncio.get_running_loop().time, NodeMetrics()
            seeder = Seeder(Library(store), Admission(AdmissionLimits(), clock), Wire(), metrics, clock)
            try:
                await test(Swarm(store, Shelf(model.parent / "store")), seeder.handle)
            finally:
                await seeder.aclose()

    run_virtual(run, random.Random(3), LIMIT_S)


@asynccontextmanager
async def asking(swarm: Swarm) -> AsyncIterator[Peers]:
    directory = MemoryDirectory(swarm.book, ME, lambda: EPOCH_S)
    wanted = Wanted(swarm.manifest.root, (LayerId(0),), MAX_FILE_BYTES, ME.peer)
    async with AsyncExitStack() as stack:
        peers = Peers(wanted, directory, swarm, lambda: 0.5, disk=swarm.shelf.disk)
        stack.push_async_callback(peers.aclose)
        await peers.begin()
        yield peers


def wish_for(swarm: Swarm, files: bytes | None = None) -> TokenWish:
    invite = Invite(swarm.manifest.root, ("/ip4/192.0.2.7",), None, files or SmallFiles(swarm.model).list_digest)
    return TokenWish(invite, (), lambda: EPOCH_S)


async def small_files(swarm: Swarm) -> PieceModel:
    async with asking(swarm) as peers:
        known = await fetch_small_files(wish_for(swarm), peers, swarm.shelf, no_progress)
    return PieceModel.open_folder(known.directory)


async def trunk(swarm: Swarm, model: PieceModel) -> None:
    async with asking(swarm) as peers:
        await fetch_trunk(wish_for(swarm), peers, model, no_progress)


def wrong(give: Give) -> Give:
    """The same with one bit turned in every chunk."""

    async def lie(request: PieceRequest) -> PieceReply:
        reply = await give(request)
        data = bytearray(reply.body)
        data[len(data) // 2] ^= 1
        return replace(reply, body=data)

    return lie


async def stall(request: PieceRequest) -> PieceReply:
    await asyncio.Event().wait()
    raise AssertionError("nobody waits so long")


async def have_nothing(request: PieceRequest) -> PieceReply:
    raise NotHeld("not here")


def test_config_manifest_and_tokenizer_come_as_they_are_and_nothing_else_does(model: Path) -> None:
    async def test(swarm: Swarm, honest: Give) -> None:
        await swarm.add(b"honest", honest)
        opened = await small_files(swarm)
        assert opened.manifest.root == swarm.manifest.root
        assert opened.manifest.probes == swarm.manifest.probes
        for name in ("config.json", "tokenizer.json"):
            assert (opened.directory / name).read_bytes() == (model / name).read_bytes()
        assert not (opened.directory / "secret.txt").exists()
        assert SmallFiles(opened).list_digest == SmallFiles(swarm.model).list_digest  # and is given on under one token

    in_swarm(model, test)


def test_past_liars_and_those_who_stall_or_have_nothing_the_next_gives(model: Path) -> None:
    async def test(swarm: Swarm, honest: Give) -> None:
        for seed, give in ((b"liar", wrong(honest)), (b"silent", stall), (b"empty", have_nothing), (b"good", honest)):
            await swarm.add(seed, give)
        opened = await small_files(swarm)
        await trunk(swarm, opened)
        assert missing_trunk(opened) == []

    in_swarm(model, test)


@pytest.mark.parametrize(
    ("give", "error"), [(stall, SourceFailed), (have_nothing, SourceFailed), (None, SourceLied)], ids=str
)
def test_where_nobody_gives_it_ends_with_the_reason(model: Path, give: Give | None, error: type[Exception]) -> None:
    async def test(swarm: Swarm, honest: Give) -> None:
        await swarm.add(b"only", wrong(honest) if give is None else give)
        begun_s = asyncio.get_running_loop().time()
        with pytest.raises(error):
            await small_files(swarm)
        assert asyncio.get_running_loop().time() - begun_s < 3 * SILENCE_S
        assert swarm.shelf.models() == []
        honest_peer = await swarm.add(b"later", honest)
        opened = await small_files(swarm)
        del swarm.gives[honest_peer]
        with pytest.raises(error):
            await trunk(swarm, opened)

    in_swarm(model, test)


def test_an_empty_swarm_ends_with_a_reason_too(model: Path) -> None:
    async def test(swarm: Swarm, honest: Give) -> None:
        with pytest.raises(SourceFailed, match="nobody in the directory"):
            await small_files(swarm)

    in_swarm(model, test)


def test_a_token_that_names_no_files_says_what_to_do(model: Path) -> None:
    async def test(swarm: Swarm, honest: Give) -> None:
        wish = wish_for(swarm)
        async with asking(swarm) as peers:
            old = replace(wish, invite=replace(wish.invite, files=None))
            with pytest.raises(InvalidRequest, match="--model"):
                await fetch_small_files(old, peers, swarm.shelf, no_progress)

    in_swarm(model, test)


@pytest.mark.parametrize("left_out", ["config.json", MANIFEST_FILE])
def test_a_token_that_vouches_for_half_a_model_makes_none(model: Path, left_out: str) -> None:
    async def test(swarm: Swarm, honest: Give) -> None:
        listed = decode_files(SmallFiles(swarm.model).list)
        short = encode_files(file for file in listed if file.name != left_out)

        async def give(request: PieceRequest) -> PieceReply:
            if request.message.digest != list_digest(short):
                return await honest(request)
            return PieceReply(Chunk(bytes(32), len(short), len(short)), short)

        await swarm.add(b"only", give)
        async with asking(swarm) as peers:
            with pytest.raises(CheckpointError, match="without config or manifest"):
                await fetch_small_files(wish_for(swarm, list_digest(short)), peers, swarm.shelf, no_progress)
        assert swarm.shelf.models() == []

    in_swarm(model, test)


def test_a_manifest_of_another_root_than_the_tokens_is_refused(model: Path) -> None:
    async def test(swarm: Swarm, honest: Give) -> None:
        await swarm.add(b"honest", honest)
        wish = wish_for(swarm)
        other = replace(wish, invite=replace(wish.invite, model_root=b"o" * 32))
        async with asking(swarm) as peers:
            with pytest.raises(CheckpointError, match="its root is"):
                await fetch_small_files(other, peers, swarm.shelf, no_progress)
        assert swarm.shelf.models() == []

    in_swarm(model, test)


def test_the_trunk_comes_tensor_by_tensor_as_it_is_and_without_the_layers_that_no_client_runs(model: Path) -> None:
    async def test(swarm: Swarm, honest: Give) -> None:
        await swarm.add(b"honest", honest)
        opened = await small_files(swarm)
        await trunk(swarm, opened)
        wanted = trunk_pieces(opened.manifest, range(opened.spec.num_layers))
        assert len(wanted) < len(opened.manifest.trunk)
        for piece in wanted:
            ours, theirs = opened.trunk_tensor(piece.name), swarm.model.trunk_tensor(piece.name)
            assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))
        assert {each.digest for each in opened.shelf.store.pieces()} == {piece.digest for piece in wanted}

    in_swarm(model, test)


def test_an_interrupted_trunk_goes_on_where_it_was(model: Path) -> None:
    """What was verified is not asked for again, nor what came of the tensor that was on its way."""

    async def test(swarm: Swarm, honest: Give) -> None:
        num_given, small, is_gone = 0, 600, asyncio.Event()

        async def give_few(request: PieceRequest) -> PieceReply:
            nonlocal num_given
            num_given += 1
            if num_given == 30:
                is_gone.set()
                raise ChannelClosed("gone")
            short = replace(request.message, size=min(small, request.message.size))
            return await honest(replace(request, message=short))

        peer = await swarm.add(b"dies", give_few)
        opened = await small_files(swarm)
        num_given = 0
        is_gone.clear()
        swarm.given_bytes.clear()
        fetching = asyncio.create_task(trunk(swarm, opened))
        await is_gone.wait()
        fetching.cancel()
        await asyncio.wait({fetching})
        before = swarm.given_bytes[peer]
        await trunk(swarm, opened)
        total = sum(piece.size_bytes for piece in trunk_pieces(opened.manifest, range(opened.spec.num_layers)))
        assert before > 0
        assert swarm.given_bytes[peer] <= total + 8 * small  # at most what was in flight came twice

    in_swarm(model, test)


def test_an_old_store_with_all_asks_nobody(model: Path) -> None:
    async def test(swarm: Swarm, honest: Give) -> None:
        peer = await swarm.add(b"honest", honest)
        opened = await small_files(swarm)
        await trunk(swarm, opened)
        del swarm.gives[peer]
        await trunk(swarm, opened)

    in_swarm(model, test)
