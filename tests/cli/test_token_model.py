"""Which model a verb opens that was told none: the token's, if it is here, without asking anybody."""

import asyncio
from pathlib import Path

import pytest

from shoal.cli.token_model import Telling, client_model, shown_name
from shoal.experts.manifest import MANIFEST_FILE, load_manifest, write_manifest
from shoal.experts.manifest_maker import make_manifest
from shoal.experts.pieces.shelf import Shelf
from shoal.node.weights.pulling import Wish, planned
from shoal.protocol.errors import ConnectFailed, ModelNotFound
from shoal.protocol.identity import Identity
from shoal.protocol.invite import Invite, encode_invite
from shoal.simulations.demo_model import MODEL_DIRECTORY
from tests.checkpoints import SHAPES, write_checkpoint

NOBODY = f"/ip4/127.0.0.1/tcp/1/p2p/{Identity.from_seed(b'n' * 32).peer}"
"""Nobody listens there."""


def not_told(words: str) -> None:
    raise AssertionError(f"nothing was to be fetched: {words}")


QUIET = Telling(lambda stage, done, total: None, not_told)


def found(model: Path | None, *join: str) -> Path:
    return asyncio.run(client_model(model, join, "off", QUIET))


def token_of(root: bytes, files: bytes | None = None) -> str:
    return encode_invite(Invite(root, (NOBODY,), None, files))


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """With a whole model on it, called tiny."""
    monkeypatch.setenv("SHOAL_STORE", str(tmp_path / "store"))
    write_checkpoint(tmp_path / "model", SHAPES["ragged_fp8_mtp_sharded"], seed=8)
    write_manifest(make_manifest(tmp_path / "model"), tmp_path / "model" / MANIFEST_FILE)
    shelf = Shelf(tmp_path / "store")

    async def pull() -> None:
        async with planned(Wish("tiny", (str(tmp_path / "model"),), "none"), shelf) as pulled:
            await pulled.run(lambda done, total: None)

    asyncio.run(pull())
    return shelf


def test_a_model_that_is_named_comes_before_the_tokens(shelf: Shelf, tmp_path: Path) -> None:
    token = token_of(shelf.find("tiny").root)
    assert found(tmp_path, token) == tmp_path
    assert found(Path("tiny")) == shelf.find("tiny").directory
    with pytest.raises(ModelNotFound):
        found(Path("another"), token)


def test_without_a_token_and_with_its_own_it_is_the_embedded_one(shelf: Shelf) -> None:
    own = token_of(load_manifest(MODEL_DIRECTORY / MANIFEST_FILE).root, b"f" * 32)
    for join in ((), (NOBODY,), (own,)):
        directory = found(None, *join)
        assert directory == MODEL_DIRECTORY
        assert shown_name(None, directory, "stories") == "stories"


def test_a_model_of_the_store_is_taken_from_there_by_any_token_of_it(shelf: Shelf) -> None:
    for files in (None, b"f" * 32):
        directory = found(None, token_of(shelf.find("tiny").root, files))
        assert directory == shelf.find("tiny").directory
        assert shown_name(None, directory, "stories") == "tiny"


def test_a_store_that_lacks_a_tensor_of_the_trunk_asks_the_swarm(shelf: Shelf) -> None:
    model = shelf.find("tiny")
    shelf.store.remove([model.manifest().trunk["model.norm.weight"].digest])
    with pytest.raises(ConnectFailed):
        found(None, token_of(model.root, b"f" * 32))
