"""Beyond the owner's limit packed experts go first, then pieces that nobody here needs, the most plentiful first."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.experts.manifest import MANIFEST_FILE, write_manifest
from shoal.experts.manifest_maker import make_manifest
from shoal.experts.pieces.model import PieceModel
from shoal.experts.pieces.shelf import Shelf
from shoal.experts.pieces.store import StoredPiece
from shoal.experts.store import ModelStore
from shoal.node.announcer import Announcer, Claim, Load
from shoal.node.daemon import no_progress
from shoal.node.holdings.assignment import Holding
from shoal.node.holdings.joining import Place
from shoal.node.holdings.placement import Shape
from shoal.node.holdings.survey import Me
from shoal.node.host import check_disk
from shoal.node.settings import GuestSettings, NodeSettings
from shoal.node.weights.filling import Supply
from shoal.node.weights.packing import LOGS_BYTES, used_bytes
from shoal.node.weights.pulling import Wish, planned
from shoal.node.weights.space import limit_pieces, plentiful_first
from shoal.protocol.errors import ConnectFailed, DiskFull, InvalidRequest
from shoal.protocol.identity import Identity
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.net.memory_directory import MemoryDirectory
from shoal.protocol.record_book import RecordBook
from shoal.protocol.records import HolderRecord
from tests.checkpoints import SHAPES, write_checkpoint

EPOCH_S = 1_800_000_000.0
LAYER = LayerId(1)
PINS_BYTES = 4096
"""For the list of what a node pins; a twentieth of an expert of this model."""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeSettings:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    model = tmp_path / "model"
    write_checkpoint(model, SHAPES["wide_fp8"], seed=8)
    write_manifest(make_manifest(model), model / MANIFEST_FILE)
    return NodeSettings(model, cache_dir=tmp_path / "cache")


def pulled(settings: NodeSettings, experts: str) -> PieceModel:
    """The model on a shelf in the cache directory, with these experts."""
    assert settings.cache_dir is not None
    shelf = Shelf(settings.cache_dir / "store")

    async def run() -> None:
        async with planned(Wish("tiny", (str(settings.model),), experts, has_trunk=False), shelf) as pull:
            await pull.run(lambda done, total: None)

    asyncio.run(run())
    directory = shelf.find("tiny").directory
    store = ModelStore.open(directory, directory)
    assert isinstance(store, PieceModel)
    return store


async def place_of(store: PieceModel, others: dict[bytes, Holding]) -> Place:
    """Our place in a swarm of these others."""
    book = RecordBook()

    def announcer(seed: bytes) -> tuple[Announcer, MemoryDirectory, Identity]:
        identity = Identity.from_seed(seed.ljust(32))
        directory = MemoryDirectory(book, identity, lambda: EPOCH_S)
        claim = Claim(identity.peer, store.manifest.root, {}, store.weight_format, 1, (), since_s=int(EPOCH_S))
        return Announcer(directory, claim, lambda: Load(0, 0)), directory, identity

    for seed, holding in others.items():
        other, _, _ = announcer(seed)
        await other.declare(replace(other.claim, holding=holding, coming={}))
    ours, directory, identity = announcer(b"we")
    me = Me(identity.peer, int(EPOCH_S), store.weight_format, "")
    return Place(Shape.of(store.spec), me, 8, directory, ours, lambda: 0.5, lambda: EPOCH_S)


def held(*experts: int) -> Holding:
    return {LAYER: tuple(map(ExpertId, experts))}


def there(store: PieceModel) -> set[int]:
    """Experts of the layer that are in the store."""
    return {expert for expert in range(8) if not store.missing([(LAYER, ExpertId(expert))])}


def limited(settings: NodeSettings, limit_bytes: int) -> NodeSettings:
    return replace(settings, guest=GuestSettings(disk_bytes=limit_bytes))


async def fill(settings: NodeSettings, store: PieceModel, holding: Holding, others: dict[bytes, Holding]) -> None:
    """As a node does it."""
    await fill_at(settings, store, holding, await place_of(store, others))
    assert not store.missing((layer, expert) for layer, experts in holding.items() for expert in experts)


async def fill_at(settings: NodeSettings, store: PieceModel, holding: Holding, place: Place) -> None:
    async with Supply(store, "node", no_progress) as supply:
        await supply.keep(holding)
        await limit_pieces(settings, store, holding, place)
        async for _ in supply.arriving(holding):
            pass


def test_the_most_plentiful_goes_first_and_among_equals_the_longest_unused() -> None:
    pieces = [StoredPiece(bytes([number]) * 32, 1, used * 10**9) for number, used in enumerate((5, 4, 3, 2))]
    holders = {pieces[0].digest: 3, pieces[1].digest: 7, pieces[2].digest: 7}
    order = plentiful_first(holders)
    assert [piece.used_at_ns // 10**9 for piece in sorted(pieces, key=order)] == [3, 4, 5, 2]


def test_a_node_at_its_limit_gives_up_what_the_swarm_has_most_of_and_keeps_what_it_holds(
    settings: NodeSettings,
) -> None:
    store = pulled(settings, "1:0-4")
    limit = used_bytes(settings) + LOGS_BYTES + PINS_BYTES
    others = {b"one": held(0, 2, 4, 5), b"two": held(2, 4, 5), b"three": held(4)}
    asyncio.run(fill(limited(settings, limit), store, held(4, 5, 6), others))
    assert there(store) == {1, 3, 4, 5, 6}, (
        "2 had two holders, 0 one, 1 and 3 none; 4 is ours, and room for two was due"
    )
    assert used_bytes(settings) <= limit


def test_without_a_limit_nothing_goes(settings: NodeSettings) -> None:
    store = pulled(settings, "1:0-4")
    asyncio.run(fill(settings, store, held(5, 6), {}))
    assert there(store) == {0, 1, 2, 3, 4, 5, 6}


def test_a_holding_that_does_not_fit_is_refused_with_what_is_missing(settings: NodeSettings) -> None:
    store = pulled(settings, "1:0")
    limit = limited(settings, used_bytes(settings) + LOGS_BYTES + PINS_BYTES)
    with pytest.raises(DiskFull, match="does not fit the cap"):
        asyncio.run(fill(limit, store, held(0, 1, 2), {}))
    assert there(store) == {0}


def test_a_limit_that_leaves_less_than_one_expert_is_refused_with_both_figures(settings: NodeSettings) -> None:
    store = pulled(settings, "1:0")
    with pytest.raises(InvalidRequest, match=r"one expert of .* takes .* leaves 0\.001 MB"):
        asyncio.run(fill(limited(settings, LOGS_BYTES + 1000), store, held(0), {}))


def test_a_limit_below_what_any_node_writes_is_refused_before_the_node_starts(settings: NodeSettings) -> None:
    with pytest.raises(InvalidRequest, match=r"may take 33\.6 MB on disk and the limit is"):
        check_disk(limited(settings, LOGS_BYTES - 1))


def test_a_directory_that_does_not_answer_leaves_the_order_to_the_last_use(
    settings: NodeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    store = pulled(settings, "1:0-2")
    limit = limited(settings, used_bytes(settings) + LOGS_BYTES + PINS_BYTES)

    class Silent(MemoryDirectory):
        async def lookup(self, *_: object) -> dict[LayerId, list[HolderRecord]]:
            raise ConnectFailed("nobody there")

    async def run() -> None:
        place = await place_of(store, {})
        silent = Silent(RecordBook(), Identity.from_seed(b"we".ljust(32)), lambda: EPOCH_S)
        await fill_at(limit, store, held(3), replace(place, directory=silent))

    store.shelf.store.read(store.manifest.expert_digest(LAYER, ExpertId(0)))
    asyncio.run(run())
    assert 3 in there(store)
    assert "pieces go by their last use" in caplog.text
    assert len(there(store)) == 3
