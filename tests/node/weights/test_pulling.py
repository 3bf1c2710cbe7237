"""A model comes into the store by wish: planned, fetched, opened again from its pieces, and filled by a node."""

import asyncio
import shutil
from pathlib import Path

import pytest
import torch

from shoal.experts.choose_backend import KernelChoice, choose_backend
from shoal.experts.manifest import MANIFEST_FILE, Manifest, write_manifest
from shoal.experts.manifest_maker import make_manifest
from shoal.experts.pieces.fetching import Fetched
from shoal.experts.pieces.model import PieceModel
from shoal.experts.pieces.pieces import all_experts
from shoal.experts.pieces.pins import pinned_in
from shoal.experts.pieces.shelf import Shelf, ShelfModel
from shoal.experts.store import ModelStore
from shoal.experts.worker import InlineWorker
from shoal.node.holdings.assignment import parse_holding
from shoal.node.weights.filling import Supply
from shoal.node.weights.loading import packer
from shoal.node.weights.pulling import Plan, Wish, planned
from shoal.protocol.errors import CheckpointError, DiskFull, InvalidRequest, ModelNotFound, ShoalError
from shoal.protocol.ids import ExpertId, LayerId
from tests.checkpoints import SHAPES, write_checkpoint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", SHAPES["ragged_fp8_mtp_sharded"], seed=8)
    write_manifest(make_manifest(tmp_path / "model"), tmp_path / "model" / MANIFEST_FILE)
    return tmp_path / "model"


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "store")


def pull(wish: Wish, shelf: Shelf) -> tuple[Plan, Fetched]:
    async def run() -> tuple[Plan, Fetched]:
        async with planned(wish, shelf) as pulled:
            return pulled.plan, await pulled.run(lambda done, total: None)

    return asyncio.run(run())


def open_pieces(model: ShelfModel) -> PieceModel:
    store = ModelStore.open(model.directory, model.directory)
    assert isinstance(store, PieceModel)
    return store


def test_a_pulled_model_is_the_checkpoint_weight_for_weight(model: Path, shelf: Shelf, tmp_path: Path) -> None:
    plan, fetched = pull(Wish("tiny", (str(model),)), shelf)
    assert fetched.num_pieces == len(plan.pieces) == len(plan.missing)
    ours, theirs = open_pieces(shelf.find("tiny")), ModelStore.open(model, tmp_path / "cache")
    with ours, theirs:
        assert (ours.spec, ours.config, ours.manifest) == (theirs.spec, theirs.config, theirs.manifest)
        assert (ours.name, ours.weight_format) == ("tiny", theirs.weight_format)
        for layer, expert in all_experts(ours.manifest):
            a, b = ours.expert(layer, expert), theirs.expert(layer, expert)
            for mine, other in zip((a.gate, a.up, a.down), (b.gate, b.up, b.down), strict=True):
                assert torch.equal(mine.data.view(torch.uint8), other.data.view(torch.uint8))
                assert mine.scale is not None
                assert other.scale is not None
                assert torch.equal(mine.scale.view(torch.uint8), other.scale.view(torch.uint8))
        for name in ours.manifest.trunk:
            assert ours.has(name)
            same = torch.equal(ours.trunk_tensor(name).view(torch.uint8), theirs.trunk_tensor(name).view(torch.uint8))
            assert same
    assert ours.bytes_read > 0


def test_a_part_is_pulled_and_the_plan_counts_its_bytes_exactly(model: Path, shelf: Shelf) -> None:
    plan, fetched = pull(Wish("tiny", (str(model),), experts="1:0-2", has_trunk=False), shelf)
    assert [piece.name for piece in plan.pieces] == ["expert 1:0", "expert 1:1", "expert 1:2"]
    with open_pieces(shelf.find("tiny")) as store:
        sizes = [store.expert(LayerId(1), ExpertId(i)) for i in range(3)]
        tensors = [weight for each in sizes for weight in (each.gate, each.up, each.down)]
        assert plan.missing_bytes == sum(
            w.data.nbytes + (w.scale.nbytes if w.scale is not None else 0) for w in tensors
        )
        with pytest.raises(ModelNotFound, match="try: shoal models pull tiny --experts 1:3"):
            store.expert(LayerId(1), ExpertId(3))
        with pytest.raises(ModelNotFound, match="try: shoal models pull tiny --trunk"):
            store.trunk_tensor("model.norm.weight")
    again, nothing = pull(Wish("tiny", experts="1:0-3", has_trunk=False), shelf)
    assert len(again.missing) == nothing.num_pieces == 1
    assert fetched.num_pieces == 3


def test_a_layer_has_its_experts_when_the_last_of_them_is_here(model: Path, shelf: Shelf) -> None:
    pull(Wish("tiny", (str(model),), experts="1:0-7,2:0-6", has_trunk=False), shelf)
    with open_pieces(shelf.find("tiny")) as store:
        assert [store.has_experts(LayerId(layer)) for layer in range(4)] == [False, True, False, False]
    with ModelStore.open(model, model) as whole:
        assert [whole.has_experts(LayerId(layer)) for layer in range(5)] == [False, True, True, True, False]


def test_a_plan_reads_no_weights_and_forecasts_by_the_rate_that_it_measures(model: Path, shelf: Shelf) -> None:
    async def plan() -> tuple[Plan, float | None]:
        async with planned(Wish("tiny", (str(model),)), shelf) as pulled:
            return pulled.plan, await pulled.forecast_s()

    told, forecast_s = asyncio.run(plan())
    assert shelf.store.pieces() == []
    assert shelf.models() == [], "a plan alone leaves nothing behind"
    assert told.free_bytes > 0
    assert forecast_s is not None
    assert forecast_s > 0


def test_a_cap_below_the_wish_is_an_error_and_not_a_part_that_went_missing(model: Path, tmp_path: Path) -> None:
    small = Shelf(tmp_path / "small", cap_bytes=400_000)
    with pytest.raises(DiskFull, match="beside what must stay"):
        pull(Wish("tiny", (str(model),), experts="1:0-7", has_trunk=False), small)
    assert 0 < small.store.size_bytes <= 400_000


def test_a_node_fills_its_store_pins_it_and_lets_go(model: Path, shelf: Shelf) -> None:
    pull(Wish("tiny", (str(model),), experts="1:2", has_trunk=False), shelf)
    heard: list[tuple[str, int, int]] = []

    async def serve() -> list[tuple[LayerId, ExpertId]]:
        with open_pieces(shelf.find("tiny")) as store:
            holding = parse_holding("1:0-3", store.spec)
            async with Supply(store, "node", lambda *words: heard.append(words)) as supply:
                assert await supply.missing(holding) == {1: (0, 1, 3)}
                arrived = [place async for place in supply.arriving(holding)]
                assert len(pinned_in(shelf.root)) == 4
                with pytest.raises(InvalidRequest, match="a node on this machine serves tiny"):
                    shelf.remove(shelf.find("tiny"))
                assert await supply.missing(holding) == {}
                assert (supply.filled.num_fetched, supply.filled.peer_bytes) == (3, 0)
                pack = packer(store, choose_backend(KernelChoice.AUTO, 1), InlineWorker())
                for place in arrived:
                    await pack(*place)
            return arrived

    arrived = asyncio.run(serve())
    assert arrived[0] == (1, 2), "what is here comes first"
    assert sorted(arrived) == [(1, 0), (1, 1), (1, 2), (1, 3)]
    assert pinned_in(shelf.root) == frozenset()
    stage, done, total = heard[-1]
    assert stage == "fetching"
    assert done == total


def test_a_paused_node_takes_nothing_until_it_works_again(model: Path, shelf: Shelf) -> None:
    pull(Wish("tiny", (str(model),), experts="none", has_trunk=False), shelf)

    async def serve() -> int:
        with open_pieces(shelf.find("tiny")) as store:
            async with Supply(store, "node", lambda *words: None) as supply:
                asked = 0

                def is_open() -> bool:
                    nonlocal asked
                    asked += 1
                    if asked <= 2:
                        assert shelf.store.pieces() == []
                    return asked > 2

                supply.is_open = is_open
                return len([place async for place in supply.arriving(parse_holding("1:0-3", store.spec))])

    assert asyncio.run(serve()) == 4


def test_a_node_that_nobody_gives_anything_says_why(model: Path, shelf: Shelf) -> None:
    pull(Wish("tiny", (str(model),), experts="none", has_trunk=False), shelf)
    shutil.rmtree(model)

    async def serve() -> None:
        with open_pieces(shelf.find("tiny")) as store:
            async with Supply(store, "node", lambda *words: None) as supply:
                [_ async for _ in supply.arriving(parse_holding("1:0-3", store.spec))]

    with pytest.raises(ModelNotFound):
        asyncio.run(serve())


def test_a_checkpoint_directory_needs_no_filling(model: Path, tmp_path: Path) -> None:
    async def serve() -> None:
        with ModelStore.open(model, tmp_path) as store:
            holding = parse_holding("1:0-3", store.spec)
            async with Supply(store, "node", lambda *words: None) as supply:
                assert await supply.missing(holding) == {}
                assert [place async for place in supply.arriving(holding)] == [(1, 0), (1, 1), (1, 2), (1, 3)]

    asyncio.run(serve())


def test_removing_frees_what_no_other_model_has(model: Path, shelf: Shelf, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    (tmp_path / "other" / MANIFEST_FILE).unlink()
    write_manifest(make_manifest(tmp_path / "other"), tmp_path / "other" / MANIFEST_FILE)
    pull(Wish("one", (str(model),)), shelf)
    size = shelf.store.size_bytes
    pull(Wish("two", (str(tmp_path / "other"),)), shelf)
    assert shelf.store.size_bytes == size, "the same weights are there once"
    assert shelf.remove(shelf.find("one")) == 0
    assert shelf.remove(shelf.find("two")) == size
    assert shelf.models() == []


def _other_root(model: Path) -> Wish:
    return Wish("tiny", (str(model),), root=b"\x01\x02\x03\x04")


def _no_manifest(model: Path) -> Wish:
    (model / MANIFEST_FILE).unlink()
    return Wish("tiny", (str(model),))


def _other_config(model: Path) -> Wish:
    path = model / "config.json"
    path.write_text(path.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    return Wish("tiny", (str(model),))


def _no_config(model: Path) -> Wish:
    (model / "config.json").unlink()
    return Wish("tiny", (str(model),))


@pytest.mark.parametrize(
    ("wish", "error", "words"),
    [
        (lambda model: Wish("tiny"), InvalidRequest, "no source is given"),
        (lambda model: Wish("tiny", (str(model / "nowhere"),)), ModelNotFound, "no such directory"),
        (lambda model: Wish("tiny", ("hf:nothing",)), InvalidRequest, "no repository"),
        (lambda model: Wish("tiny", ("http://",)), InvalidRequest, "no URL of a mirror"),
        (lambda model: Wish("../tiny", (str(model),)), InvalidRequest, "no name for a model"),
        (lambda model: Wish("tiny", (str(model),), experts="1:99"), InvalidRequest, "outside the model"),
        (_other_root, CheckpointError, "its root is"),
        (_no_manifest, ModelNotFound, "give one by --manifest"),
        (_other_config, CheckpointError, "not the config"),
        (_no_config, ModelNotFound, "has no config.json"),
    ],
)
def test_a_wish_that_cannot_be_fulfilled_says_why(
    wish: "type[Wish]", error: type[ShoalError], words: str, model: Path, shelf: Shelf
) -> None:
    with pytest.raises(error, match=words):
        pull(wish(model), shelf)  # type: ignore[call-arg,arg-type]


def test_a_name_stands_for_one_model_only(model: Path, shelf: Shelf) -> None:
    manifest = make_manifest(model)
    other = Manifest("deepseek_v3", manifest.weight_format, bytes(32), {}, {LayerId(1): (bytes(32),)}, {})
    first = shelf.add("tiny", manifest, {}, ["here"])
    with pytest.raises(InvalidRequest, match="tiny is another model here"):
        shelf.add("tiny", other, {}, [])
    second = shelf.add("other", other, {}, [])
    assert shelf.find("tiny") == shelf.find(f"tiny@{manifest.root.hex()[:8]}") == shelf.find(first.root.hex()) == first
    assert shelf.find(other.root.hex()[:8]) == second
    for words in ("", "tin", "tiny@ffff0000", "0" * 8):
        with pytest.raises(ModelNotFound, match="known: other@"):
            shelf.find(words)


def test_the_place_of_the_sources_is_private(model: Path, shelf: Shelf) -> None:
    added = shelf.add("tiny", make_manifest(model), {}, ["http://me:secret@10.0.0.5/m"])
    assert (added.directory / "shoal.pieces.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"shoal_pieces": 1, "name": 3, "sources": []}'])
def test_a_damaged_note_is_refused(text: str, model: Path, shelf: Shelf) -> None:
    added = shelf.add("tiny", make_manifest(model), {}, [])
    (added.directory / "shoal.pieces.json").write_text(text)
    with pytest.raises(CheckpointError):
        shelf.models()
