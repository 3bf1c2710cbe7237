"""`shoal models`: what a user types, what he gets, and that `--json` is what docs/schemas says."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.cli.model_words import model_directory
from shoal.experts.manifest import MANIFEST_FILE, write_manifest
from shoal.experts.manifest_maker import make_manifest
from shoal.protocol.errors import ModelNotFound
from shoal.protocol.ids import LayerId
from tests.checkpoints import CheckpointShape, write_checkpoint
from tools.schemas import schema_of

Json = dict[str, object]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SHOAL_STORE", str(tmp_path / "store"))
    write_checkpoint(tmp_path / "Tiny", CheckpointShape(), seed=1)
    return tmp_path / "Tiny"


def shoal(*words: str, status: int = 0) -> str:
    done = CliRunner().invoke(app, ["models", *words])
    assert done.exit_code == status, done.output
    return done.stdout


def as_schema_says(verb: str, printed: str) -> Json:
    value: Json = json.loads(printed)
    Draft202012Validator(json.loads(schema_of(verb))).validate(value)
    return value


def test_an_imported_model_is_listed_verified_and_removed(model: Path) -> None:
    pulled = as_schema_says("models-pull", shoal("import", str(model), "--experts", "1:0-3", "--no-trunk", "--json"))
    assert (pulled["name"], pulled["num_fetched"], pulled["num_pieces"]) == ("Tiny", 4, 4)
    listed = as_schema_says("models-ls", shoal("ls", "--json"))
    assert isinstance(listed["models"], list)
    assert [each["num_experts_here"] for each in listed["models"]] == [4]
    assert "4 of 16 experts, 0 of" in shoal("ls")
    verified = as_schema_says("models-verify", shoal("verify", "Tiny", "--json"))
    assert (verified["num_verified"], verified["damaged"]) == (4, [])
    removed = as_schema_says("models-rm", shoal("rm", "Tiny", "--json"))
    assert removed["freed_bytes"] == verified["size_bytes"]
    assert as_schema_says("models-ls", shoal("ls", "--json"))["models"] == []


def test_a_dry_run_tells_bytes_disk_and_time_and_fetches_nothing(model: Path) -> None:
    write_manifest(make_manifest(model), model / MANIFEST_FILE)
    root = make_manifest(model).root.hex()
    words = ("pull", f"tiny@{root[:8]}", "--from", str(model), "--experts", "1:0-1", "--no-trunk")
    told = as_schema_says("models-pull", shoal(*words, "--dry-run", "--json"))
    assert told["missing_bytes"] == 2 * 3 * 72 * 40 * 4
    assert told["fits"] is True
    assert isinstance(told["forecast_s"], float)
    assert told["num_fetched"] == 0
    assert "2 of 2 pieces to fetch, 69120 bytes" in shoal(*words, "--dry-run")
    assert as_schema_says("models-pull", shoal(*words, "--json"))["num_fetched"] == 2
    assert "0 of 2 pieces to fetch" in shoal(*words, "--dry-run")


def test_what_is_damaged_on_disk_is_named_removed_and_exits_6(model: Path, tmp_path: Path) -> None:
    shoal("import", str(model), "--name", "tiny", "--experts", "none")
    path = next((tmp_path / "store" / "pieces").iterdir())
    path.write_bytes(b"?" + path.read_bytes()[1:])
    damaged = as_schema_says("models-verify", shoal("verify", "tiny", "--json", status=6))["damaged"]
    assert isinstance(damaged, list)
    assert len(damaged) == 1
    assert not path.exists()
    assert "0 damaged" in shoal("verify", "tiny")


def test_a_cap_that_is_too_small_is_an_error_of_its_own_status(model: Path) -> None:
    done = CliRunner().invoke(app, ["models", "import", str(model), "--disk", "1KB"])
    assert done.exit_code == 7
    assert "does not fit the cap of 1000" in done.stderr


def test_a_root_that_is_none_and_a_model_that_is_none_are_refused(model: Path) -> None:
    shoal("pull", "tiny@xyz", "--from", str(model), status=2)
    shoal("pull", "tiny@01020304", "--from", str(model), status=2)  # it ships no manifest
    shoal("rm", "nobody", status=2)


def test_a_model_is_meant_by_directory_or_by_name(model: Path) -> None:
    shoal("import", str(model), "--name", "tiny", "--experts", "none", "--no-trunk")
    root = make_manifest(model).root.hex()
    assert model_directory(model) == model
    assert model_directory(Path("tiny")).name == model_directory(Path(f"tiny@{root[:8]}")).name == root
    with pytest.raises(ModelNotFound, match="no such model directory: nobody; and in the store"):
        model_directory(Path("nobody"))
    assert model_directory(Path("/nowhere/at/all")) == Path("/nowhere/at/all")


def test_removing_a_model_removes_what_was_packed_of_it(model: Path, tmp_path: Path) -> None:
    shoal("import", str(model), "--name", "tiny", "--experts", "1:0-1", "--no-trunk")
    digest = make_manifest(model).experts[LayerId(1)][0]
    packed = tmp_path / "cache" / "shoal" / "experts" / "packed"
    packed.mkdir(parents=True)
    ours, other = packed / f"{digest.hex()}.fp8_block.1", packed / f"{bytes(32).hex()}.fp8_block.1"
    for file in (ours, other):
        file.write_bytes(b"12345")
    shoal("rm", "tiny")
    assert [file.name for file in packed.iterdir()] == [other.name]
