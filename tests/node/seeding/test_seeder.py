"""A node gives verified pieces of its model and nothing else, in turns, behind its clients' answers."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.experts.digest import digest_bytes, digest_config
from shoal.experts.manifest import MANIFEST_FILE, decode_manifest, write_manifest
from shoal.experts.manifest_maker import make_manifest
from shoal.experts.pieces.pieces import all_experts, trunk_pieces
from shoal.experts.pieces.shelf import Shelf
from shoal.experts.small_files import SmallFiles
from shoal.experts.store import ModelStore
from shoal.node.metrics import NodeMetrics
from shoal.node.seeding.choke import START_TURNS
from shoal.node.seeding.library import Library
from shoal.node.seeding.seeder import BACKLOG_S, MAX_ASKED_AT_ONCE, MIN_CHUNK_BYTES, Seeder
from shoal.node.serving.admission import Admission, AdmissionLimits, Demand, Wire
from shoal.node.weights.pulling import Wish, planned
from shoal.protocol import limits
from shoal.protocol.errors import Busy, Draining, Malformed, NotHeld, WrongModel
from shoal.protocol.ids import PeerId
from shoal.protocol.messages import Fetch
from shoal.protocol.model_files import decode_files
from shoal.protocol.net.channel import PieceReply, PieceRequest
from tests.checkpoints import SHAPES, write_checkpoint

PEER = PeerId("asker")
NO_LIMIT = Wire()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", SHAPES["ragged_fp8_mtp_sharded"], seed=8)
    write_manifest(make_manifest(tmp_path / "model"), tmp_path / "model" / MANIFEST_FILE)
    return tmp_path / "model"


@pytest.fixture
def pieces(model: Path, tmp_path: Path) -> Path:
    """The same model on a shelf; the folder that opens it."""
    shelf = Shelf(tmp_path / "store")

    async def pull() -> None:
        async with planned(Wish("tiny", (str(model),), has_trunk=False), shelf) as pulled:
            await pulled.run(lambda done, total: None)

    asyncio.run(pull())
    return shelf.find("tiny").directory


def with_seeder(
    folder: Path,
    test: Callable[[ModelStore, Seeder, NodeMetrics], Coroutine[object, object, None]],
    wire: Wire = NO_LIMIT,
    admission: Admission | None = None,
) -> None:
    async def run() -> None:
        with ModelStore.open(folder, folder) as store:
            metrics, clock = NodeMetrics(), asyncio.get_running_loop().time
            let_in = admission or Admission(AdmissionLimits(), clock)
            seeder = Seeder(Library(store), let_in, wire, metrics, clock)
            try:
                await test(store, seeder, metrics)
            finally:
                await seeder.aclose()

    asyncio.run(run())


def fetch(root: bytes, digest: bytes, begin: int = 0, size: int = limits.MAX_CHUNK_BYTES) -> Fetch:
    return Fetch(root, digest, begin, size, 60_000)


def ask(seeder: Seeder, message: Fetch, peer: PeerId = PEER) -> Coroutine[object, object, PieceReply]:
    return seeder.handle(PieceRequest(peer, message, b"h" * 32, 0.0))


async def whole(seeder: Seeder, message: Fetch, peer: PeerId = PEER) -> bytes:
    data = bytearray()
    while True:
        reply = await ask(seeder, replace(message, begin=len(data)), peer)
        assert len(reply.body) == reply.message.size <= message.size
        data += reply.body
        if len(data) == reply.message.piece_bytes:
            return bytes(data)


@pytest.mark.parametrize("layout", ["model", "pieces"])
def test_every_expert_is_given_with_the_bytes_of_its_digest(layout: str, request: pytest.FixtureRequest) -> None:
    async def test(store: ModelStore, seeder: Seeder, metrics: NodeMetrics) -> None:
        for layer, expert in all_experts(store.manifest):
            digest = store.manifest.expert_digest(layer, expert)
            assert digest_bytes(await whole(seeder, fetch(store.manifest.root, digest, size=1000))) == digest
        assert metrics.pieces_given == store.manifest.num_experts
        assert metrics.bytes_given >= metrics.pieces_given * 1000

    with_seeder(request.getfixturevalue(layout), test)


def test_every_tensor_of_the_trunk_is_given_with_the_bytes_of_its_digest(model: Path) -> None:
    shelf = Shelf(model.parent / "whole")

    async def pull() -> Path:
        async with planned(Wish("tiny", (str(model),), "none"), shelf) as pulled:
            await pulled.run(lambda done, total: None)
        return shelf.find("tiny").directory

    async def test(store: ModelStore, seeder: Seeder, metrics: NodeMetrics) -> None:
        for piece in trunk_pieces(store.manifest):
            data = await whole(seeder, fetch(store.manifest.root, piece.digest, size=1000))
            assert (digest_bytes(data), len(data)) == (piece.digest, piece.size_bytes)

    with_seeder(model, test)
    with_seeder(asyncio.run(pull()), test)


def test_a_tensor_that_is_damaged_or_cut_short_is_not_given(model: Path) -> None:
    damaged = next(iter(sorted(model.glob("*.safetensors"))))
    data = bytearray(damaged.read_bytes())

    async def test(store: ModelStore, seeder: Seeder, metrics: NodeMetrics) -> None:
        pieces = [piece for piece in trunk_pieces(store.manifest) if store.file_of(piece.name) == damaged.name]
        for piece in pieces:
            with pytest.raises(NotHeld):
                await ask(seeder, fetch(store.manifest.root, piece.digest))
        assert pieces

    header_bytes = int.from_bytes(data[:8], "little")
    for at in range(8 + header_bytes, len(data)):
        data[at] ^= 1
    damaged.write_bytes(data)
    with_seeder(model, test)


def test_small_files_and_their_list_are_given_by_hash(model: Path) -> None:
    (model / "tokenizer.json").write_text("{}")

    async def test(store: ModelStore, seeder: Seeder, metrics: NodeMetrics) -> None:
        root, files = store.manifest.root, SmallFiles(store)
        listed = decode_files(await whole(seeder, fetch(root, files.list_digest)))
        assert {file.name for file in listed} >= {"config.json", MANIFEST_FILE, "tokenizer.json"}
        for file in listed:
            data = await whole(seeder, fetch(root, file.digest))
            assert (digest_bytes(data), len(data)) == (file.digest, file.size_bytes)
        (model / "tokenizer.json").write_text("[]")  # another one meanwhile
        assert files.read(digest_bytes(b"{}")) is None

    with_seeder(model, test)


def test_whoever_knows_only_the_root_is_given_the_manifest_and_the_config(model: Path) -> None:
    async def test(store: ModelStore, seeder: Seeder, metrics: NodeMetrics) -> None:
        root = store.manifest.root
        manifest = decode_manifest(await whole(seeder, fetch(root, root)))
        assert manifest.root == root
        config = json.loads(await whole(seeder, fetch(root, manifest.config_digest)))
        assert digest_config(config) == manifest.config_digest

    with_seeder(model, test)


def test_what_is_damaged_or_not_of_this_model_is_not_given(pieces: Path) -> None:
    async def test(store: ModelStore, seeder: Seeder, metrics: NodeMetrics) -> None:
        layer, expert = all_experts(store.manifest)[3]
        digest = store.manifest.expert_digest(layer, expert)
        path = pieces.parent.parent / "pieces" / digest.hex()
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(NotHeld):
            await ask(seeder, fetch(store.manifest.root, digest))
        with pytest.raises(NotHeld):
            await ask(seeder, fetch(store.manifest.root, b"?" * 32))
        with pytest.raises(WrongModel):
            await ask(seeder, fetch(b"?" * 32, digest))
        other = store.manifest.expert_digest(layer, all_experts(store.manifest)[0][1])
        with pytest.raises(Malformed):
            await ask(seeder, fetch(store.manifest.root, other, begin=limits.MAX_PIECE_BYTES - 1))
        assert (metrics.bytes_given, metrics.fetches_refused) == (0, 4)

    with_seeder(pieces, test)


def test_a_paused_node_gives_nothing_until_it_works_again(model: Path) -> None:
    async def test(store: ModelStore, seeder: Seeder, metrics: NodeMetrics) -> None:
        message = fetch(store.manifest.root, store.manifest.root)
        seeder.set_open(False)
        with pytest.raises(Draining):
            await ask(seeder, message)
        seeder.set_open(True)
        await ask(seeder, message)

    with_seeder(model, test)


def test_so_many_peers_take_at_a_time_and_the_next_is_told_when_to_come(model: Path) -> None:
    async def test(store: ModelStore, seeder: Seeder, metrics: NodeMetrics) -> None:
        message = fetch(store.manifest.root, store.manifest.expert_digest(*all_experts(store.manifest)[0]), size=10)
        for number in range(START_TURNS):
            await ask(seeder, message, PeerId(f"p{number}"))
        with pytest.raises(Busy) as caught:
            await ask(seeder, message, PEER)
        assert caught.value.retry_after_s > 0

    with_seeder(model, test)


def test_one_peer_may_not_ask_for_everything_at_once(model: Path) -> None:
    async def test(store: ModelStore, seeder: Seeder, metrics: NodeMetrics) -> None:
        message = fetch(store.manifest.root, store.manifest.root, size=10)
        asked = [ask(seeder, message) for _ in range(2 * MAX_ASKED_AT_ONCE)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(answer, PieceReply) for answer in answers) == MAX_ASKED_AT_ONCE
        assert all(isinstance(answer, PieceReply | Busy) for answer in answers)

    with_seeder(model, test)


def test_under_a_limit_a_chunk_is_short_and_waits_for_what_is_on_its_way(model: Path) -> None:
    backlogs = iter([0.3, BACKLOG_S + 0.001, 0.0])
    wire = Wire(backlog_s=lambda: next(backlogs), up_bytes_per_s=100_000)

    async def test(store: ModelStore, seeder: Seeder, metrics: NodeMetrics) -> None:
        reply = await ask(seeder, fetch(store.manifest.root, store.manifest.root))
        assert reply.message.size == max(MIN_CHUNK_BYTES, int(100_000 * BACKLOG_S)) or (
            reply.message.size == reply.message.piece_bytes
        )
        assert next(backlogs, None) is None  # it has looked until there was no more of it

    with_seeder(model, test, wire)


def test_a_chunk_lets_an_answer_go_first_and_does_not_wait_for_ever(model: Path) -> None:
    admission = Admission(AdmissionLimits(), lambda: 0.0)

    async def test(store: ModelStore, seeder: Seeder, metrics: NodeMetrics) -> None:
        message = fetch(store.manifest.root, store.manifest.root, size=10)
        with admission.admit(Demand(PEER, 1)):
            await ask(seeder, message)  # the request goes on and on: the chunk comes all the same
        await ask(seeder, message)

    with_seeder(model, test, admission=admission)
