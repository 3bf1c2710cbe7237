"""`shoal manifest`: what is made, verified, shown and signed, and what of it is refused."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from shoal.cli.main import app
from shoal.experts.manifest import MANIFEST_FILE, load_manifest
from shoal.experts.manifest_maker import DEFAULT_MAKING, Making, make_manifest
from shoal.experts.manifest_signature import SIGNATURE_FILE, add_signature, sign_root, signers
from shoal.experts.merkle_proof import check_proof, decode_proof
from shoal.experts.store import ModelStore
from shoal.protocol.errors import CheckpointError
from shoal.protocol.identity import Identity, verify
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.version import MANIFEST_CONTEXT
from tests.checkpoints import SHAPES, CheckpointShape, read_tensors, write_checkpoint, write_tensors
from tools.schemas import schema_of

KEY = Identity.from_seed(bytes(range(32)))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", CheckpointShape(), seed=1)
    return tmp_path / "model"


def shoal(*words: str, status: int = 0) -> str:
    done = CliRunner().invoke(app, ["manifest", *words])
    assert done.exit_code == status, done.output
    return done.stdout


def as_schema_says(verb: str, printed: str) -> dict[str, object]:
    value: dict[str, object] = json.loads(printed)
    Draft202012Validator(json.loads(schema_of(verb))).validate(value)
    return value


def test_making_writes_the_manifest_that_the_library_makes(model: Path) -> None:
    said = as_schema_says("manifest-show", shoal("make", str(model), "--jobs", "3", "--json"))
    assert load_manifest(model / MANIFEST_FILE) == make_manifest(model)
    assert said["root"] == make_manifest(model).root.hex()
    assert said["num_experts"] == 16


@pytest.mark.parametrize("shape", ["plain", "ragged_fp8_mtp_sharded"])
def test_the_number_of_jobs_changes_nothing(shape: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, SHAPES[shape], seed=2)
    assert make_manifest(tmp_path, making=Making(num_jobs=5)) == make_manifest(tmp_path, making=DEFAULT_MAKING)


def test_verifying_names_every_damaged_weight_and_exits_6(model: Path) -> None:
    shoal("make", str(model))
    assert "0 damaged" in shoal("verify", str(model))
    tensors = read_tensors(model)
    for name in ("model.layers.2.mlp.experts.6.up_proj.weight", "model.norm.weight"):
        tensors[name].view(-1)[1] += 1
    write_tensors(model, tensors, num_files=1)
    said = as_schema_says("manifest-verify", shoal("verify", str(model), "--json", "--jobs", "2", status=6))
    assert isinstance(said["damages"], list)
    assert [damage["what"] for damage in said["damages"]] == ["expert 2:6", "model.norm.weight"]


def test_with_the_root_alone_a_file_is_proved_to_be_an_expert_and_another_is_not(model: Path, tmp_path: Path) -> None:
    root = make_manifest(model, making=Making(is_probed=False)).root.hex()
    shoal("make", str(model), "--no-probes")
    assert (model / "shoal.layout").is_file()
    proof = str(json.loads(shoal("show", str(model), "--proof", "2:6"))["proof"])
    with ModelStore.open(model, tmp_path) as store:
        right, wrong = tmp_path / "right", tmp_path / "wrong"
        right.write_bytes(store.piece(LayerId(2), ExpertId(6)) or b"")
        wrong.write_bytes(store.piece(LayerId(2), ExpertId(5)) or b"")
    said = as_schema_says("manifest-proof", shoal("prove", proof, "--root", root, "--piece", str(right), "--json"))
    assert (said["layer"], said["expert"], said["root"]) == (2, 6, root)
    assert "expert 2:6 belongs to it" in shoal("prove", proof, "--root", root)
    shoal("prove", proof, "--root", root, "--piece", str(wrong), status=6)
    shoal("prove", proof, "--root", "00" * 32, status=6)
    shoal("prove", proof[:-2], "--root", root, status=6)
    shoal("prove", "no hex", "--root", root, status=2)
    shoal("prove", proof, "--root", root, "--piece", str(tmp_path / "nothing"), status=2)


def test_a_model_of_the_store_is_shown_and_signed_by_its_name_and_verified_elsewhere(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    monkeypatch.setenv("SHOAL_STORE", str(store))
    shoal("make", str(model), "--no-probes")
    done = CliRunner().invoke(app, ["models", "pull", "tiny", "--from", str(model), "--experts", "2:0"])
    assert done.exit_code == 0, done.output
    root = load_manifest(model / MANIFEST_FILE).root.hex()
    assert as_schema_says("manifest-show", shoal("show", "tiny", "--json"))["root"] == root
    assert "signed by" in shoal("sign", f"tiny@{root[:8]}", "--identity", str(tmp_path / "key"))
    for verb in ("verify", "make"):
        refused = CliRunner().invoke(app, ["manifest", verb, "tiny"])
        assert (refused.exit_code, "try: shoal models verify tiny" in " ".join(refused.output.split())) == (2, True)


def test_a_proof_that_is_shown_leads_to_the_root(model: Path) -> None:
    root = str(json.loads(shoal("make", str(model), "--no-probes", "--json"))["root"])
    said = as_schema_says("manifest-proof", shoal("show", str(model), "--proof", "2:6"))
    check_proof(decode_proof(bytes.fromhex(str(said["proof"]))), bytes.fromhex(root))
    assert "no expert" in CliRunner().invoke(app, ["manifest", "show", str(model), "--proof", "two"]).output


def test_a_signed_manifest_says_whose_key_it_is_and_keeps_other_signatures(model: Path, tmp_path: Path) -> None:
    shoal("make", str(model))
    root = load_manifest(model / MANIFEST_FILE).root
    add_signature(model / SIGNATURE_FILE, KEY, root)
    said = json.loads(shoal("sign", str(model), "--identity", str(tmp_path / "key"), "--json"))
    assert len(said["signed_by"]) == 2
    assert KEY.peer in said["signed_by"]
    assert KEY.peer in shoal("verify", str(model))


def test_a_signature_of_another_root_is_refused_and_none_is_added_to_it(model: Path) -> None:
    shoal("make", str(model))
    add_signature(model / SIGNATURE_FILE, KEY, bytes(32))
    with pytest.raises(CheckpointError, match="did not sign"):
        signers(model / SIGNATURE_FILE, load_manifest(model / MANIFEST_FILE).root)
    assert "did not sign" in CliRunner().invoke(app, ["manifest", "verify", str(model)]).output


def test_a_signature_is_over_a_context_of_its_own() -> None:
    verify(KEY.peer, sign_root(KEY, b"r" * 32), MANIFEST_CONTEXT + b"r" * 32)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"shoal_signatures": 1, "signatures": [{}]}', '{"shoal_signatures": 1, "signatures": 3}',
     '{"shoal_signatures": 1, "signatures": [{"peer": "x", "signature": "' + "zz" * 64 + '"}]}'],
)  # fmt: skip
def test_a_damaged_file_of_signatures_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / SIGNATURE_FILE).write_text(text)
    with pytest.raises(CheckpointError):
        signers(tmp_path / SIGNATURE_FILE, bytes(32))
