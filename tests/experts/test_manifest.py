"""The manifest: one root per model, refused when anything under it changes."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from safetensors.torch import save_file

from shoal.experts.checkpoint import Checkpoint
from shoal.experts.digest import merkle_root
from shoal.experts.family import PROJECTIONS, model_spec, read_config
from shoal.experts.manifest import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    Manifest,
    decode_manifest,
    encode_manifest,
    load_manifest,
    verify_expert,
    verify_trunk_tensor,
    write_manifest,
)
from shoal.experts.manifest_maker import Making, make_manifest, open_manifest
from shoal.experts.shard import read_shard
from shoal.protocol.errors import CheckpointError, InvalidRequest, ModelNotFound, ShoalError
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import WeightFormat
from tests.checkpoints import SHAPES, CheckpointShape, read_tensors, write_checkpoint, write_tensors

LAYER, EXPERT = LayerId(1), ExpertId(5)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", CheckpointShape(), seed=1)
    return tmp_path / "model"


def _change_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _flip_bit(path: Path, position: int, bit: int = 0) -> None:
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1 << bit
    path.write_bytes(raw)


# ------------------------------------------------------------------------------------------------ identity


def test_the_root_of_a_known_model_never_changes() -> None:
    manifest = Manifest(
        model_type="deepseek_v3",
        weight_format=WeightFormat.F32,
        config_digest=bytes(32),
        trunk={},
        experts={LayerId(3): (bytes([1]) * 32, bytes([2]) * 32)},
        probes={},
    )
    model = blake3(b"\x00" + b"model" + blake3(b"1 deepseek_v3 F32 " + bytes(32)).digest()).digest()
    first = blake3(b"\x00" + b"expert/3/0" + bytes([1]) * 32).digest()
    second = blake3(b"\x00" + b"expert/3/1" + bytes([2]) * 32).digest()
    pair = blake3(b"\x01" + model + first).digest()
    assert manifest.root == blake3(b"\x01" + pair + second).digest()


def test_an_expert_s_digest_is_that_of_its_canonical_encoding(model: Path) -> None:
    tensors = read_tensors(model)
    encoding = b""
    for projection in PROJECTIONS:
        name = f"model.layers.1.mlp.experts.5.{projection}_proj.weight"
        out_size, in_size = tensors[name].shape
        encoding += len(name).to_bytes(2, "little") + name.encode() + b"\x03F32" + b"\x02"
        for word in (out_size, in_size, tensors[name].nbytes):
            encoding += word.to_bytes(8, "little")
        encoding += tensors[name].numpy().tobytes()
    assert make_manifest(model).experts[LAYER][EXPERT] == blake3(encoding).digest()


def test_the_root_does_not_depend_on_shards_times_or_cosmetic_config(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    write_tensors(other, read_tensors(model), num_files=5)
    _change_config(other, transformers_version="9", torch_dtype="float64", architectures=[], use_cache=False)
    assert make_manifest(other) == make_manifest(model)


@pytest.mark.parametrize("change", [{"rope_parameters": {"rope_theta": 5}}, {"topk_group": 3}, {"unheard_of": 1}])
def test_the_root_covers_the_config(model: Path, change: dict[str, object]) -> None:
    root = make_manifest(model).root
    _change_config(model, **change)
    assert make_manifest(model).root != root


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.experts.5.up_proj.weight"])
def test_the_root_covers_every_value(model: Path, name: str) -> None:
    root = make_manifest(model).root
    tensors = read_tensors(model)
    tensors[name].view(-1)[3] += 1e-3
    write_tensors(model, tensors, num_files=1)
    assert make_manifest(model).root != root


def test_probes_are_not_part_of_the_root(model: Path) -> None:
    without = make_manifest(model, making=Making(is_probed=False))
    assert without.probes == {}
    assert without.root == make_manifest(model).root


def test_a_leaf_without_partner_rises_and_is_not_paired_with_itself() -> None:
    a, b, c = (bytes([i]) * 32 for i in range(3))
    assert merkle_root([a]) == a
    assert merkle_root([a, b, c]) != merkle_root([a, b, c, c])
    assert merkle_root([a, b, c]) != merkle_root([a, c, b])
    with pytest.raises(ValueError, match="needs a leaf"):
        merkle_root([])


def test_an_mtp_layer_is_in_the_manifest_if_its_tensors_are_there(model: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "mtp", SHAPES["ragged_fp8_mtp_sharded"], seed=1)
    assert list(make_manifest(tmp_path / "mtp").experts) == [1, 2, 3]
    assert read_config(model)["num_nextn_predict_layers"] == 0
    _change_config(model, num_nextn_predict_layers=1)
    assert list(make_manifest(model).experts) == [1, 2]


def test_half_an_mtp_layer_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, SHAPES["ragged_fp8_mtp_sharded"], seed=1)
    tensors = read_tensors(tmp_path)
    missing = "model.layers.3.mlp.experts.4.up_proj.weight"
    del tensors[missing]
    write_tensors(tmp_path, tensors, num_files=1)
    with pytest.raises(CheckpointError, match="missing") as caught:
        make_manifest(tmp_path)
    assert caught.value.tensor == missing


def test_progress_counts_every_byte_once(model: Path) -> None:
    calls: list[tuple[int, int]] = []
    make_manifest(model, lambda done, total: calls.append((done, total)))
    total = sum(tensor.nbytes for tensor in read_tensors(model).values())
    assert calls == sorted(calls)
    assert calls[-1] == (total, total)


def test_a_mixture_of_formats_is_refused(model: Path) -> None:
    tensors = read_tensors(model)
    for projection in PROJECTIONS:
        name = f"model.layers.2.mlp.experts.7.{projection}_proj.weight"
        tensors[name] = tensors[name].bfloat16()
    write_tensors(model, tensors, num_files=1)
    with pytest.raises(CheckpointError, match=r"model\.layers\.2\.mlp\.experts\.7: BF16 in a model of F32"):
        make_manifest(model)


# ------------------------------------------------------------------------------------------------ verification


def test_an_expert_in_another_s_place_is_refused(model: Path) -> None:
    manifest = make_manifest(model)
    spec = model_spec(read_config(model) | {"num_nextn_predict_layers": 0})
    with Checkpoint.open(model) as checkpoint:
        right = read_shard(checkpoint, spec, LAYER, EXPERT).tensors
        other = read_shard(checkpoint, spec, LAYER, ExpertId(4)).tensors
    verify_expert(manifest, LAYER, EXPERT, right)
    for wrong in (other, right[:2], right[::-1], right + right[:1], ()):
        with pytest.raises(CheckpointError, match="not the bytes, names or shapes of the manifest"):
            verify_expert(manifest, LAYER, EXPERT, wrong)
    with pytest.raises(InvalidRequest, match="no expert 8 in layer 1"):
        verify_expert(manifest, LAYER, ExpertId(8), right)


def test_a_trunk_tensor_of_another_name_shape_or_dtype_is_refused(model: Path, tmp_path: Path) -> None:
    manifest = make_manifest(model)
    tensors = read_tensors(model)
    name = "model.layers.0.self_attn.o_proj.weight"
    changed = {
        "shape": {name: tensors[name].T.contiguous()},
        "dtype": {name: tensors[name].view(torch.int32)},
        "name": {"model.layers.9.self_attn.o_proj.weight": tensors[name]},
    }
    for kind, replacement in changed.items():
        (tmp_path / kind).mkdir()
        save_file(replacement, tmp_path / kind / "model.safetensors")
        with Checkpoint.open(tmp_path / kind) as checkpoint, pytest.raises(CheckpointError, match="manifest"):
            verify_trunk_tensor(manifest, checkpoint.read(next(iter(replacement))))


# ------------------------------------------------------------------------------------------------ the file


def test_a_written_manifest_reads_back_the_same(model: Path) -> None:
    manifest = make_manifest(model)
    write_manifest(manifest, model / MANIFEST_FILE)
    assert load_manifest(model / MANIFEST_FILE) == manifest
    assert sorted(path.name for path in model.glob(".*")) == [], "no temporary file stays"


def test_every_flipped_bit_of_a_manifest_is_refused(model: Path) -> None:
    raw = bytearray(encode_manifest(make_manifest(model)).encode())
    chooser = random.Random(1)
    for position in chooser.sample(range(len(raw)), 300):
        bit = 1 << chooser.randrange(8)
        raw[position] ^= bit
        with pytest.raises(CheckpointError) as caught:
            decode_manifest(bytes(raw))
        assert caught.value.file == MANIFEST_FILE
        raw[position] ^= bit


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shoal_manifest": 2}, "version 2; 1 is known"),
        ({"extra": 1}, r"\['extra'\] missing or unknown"),
        ({"root": "00" * 32}, "not the one it states"),
        ({"root": "00" * 31}, "root is not 32 bytes"),
        ({"root": "A0" * 32}, "root is not lowercase hex"),
        ({"model_type": 7}, "model_type is 7"),
        ({"weight_format": "fp3"}, "unknown weight_format fp3"),
        ({"experts": []}, "experts is not an object"),
        ({"experts": {"01": "00" * 32}}, "experts of layer '01'"),
        ({"experts": {"99999": "00" * 32}}, "experts of layer '99999'"),
        ({"experts": {"9" * 5000: "00" * 32}}, "experts of layer '999"),
        ({"experts": {"1": "00" * 33}}, "33 bytes, not so many times 32"),
        ({"experts": {"1": ""}}, "0 bytes"),
        ({"trunk": {"a": ["F32", [1]]}}, r"is not \[dtype, shape, digest\]"),
        ({"trunk": {"a": ["F99", [1], "00" * 32]}}, "trunk tensor a is 'F99'"),
        ({"trunk": {"a": [["F32"], [1], "00" * 32]}}, "trunk tensor a is"),
        ({"trunk": {"a": ["F32", [-1], "00" * 32]}}, "trunk tensor a is"),
        ({"trunk": {"a": ["F32", [2**63], "00" * 32]}}, "trunk tensor a is"),
        ({"trunk": {"\ud800": ["F32", [1], "00" * 32]}}, "unprintable"),
        ({"probes": {}}, "its probes do not have the hash"),
    ],
)
def test_a_manifest_that_is_not_as_we_write_it_is_refused(model: Path, change: dict[str, object], words: str) -> None:
    value = json.loads(encode_manifest(make_manifest(model))) | change
    with pytest.raises(CheckpointError, match=words):
        decode_manifest(json.dumps(value).encode())


def test_a_missing_or_oversize_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        load_manifest(tmp_path / MANIFEST_FILE)
    (tmp_path / MANIFEST_FILE).touch()
    os.truncate(tmp_path / MANIFEST_FILE, MAX_MANIFEST_BYTES + 1)
    with pytest.raises(CheckpointError, match="more than"):
        load_manifest(tmp_path / MANIFEST_FILE)


# ------------------------------------------------------------------------------------------------ where it comes from


def _cached(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.manifest.json"))


def test_a_shipped_manifest_is_used_and_nothing_is_cached(model: Path, tmp_path: Path) -> None:
    manifest = make_manifest(model)
    write_manifest(manifest, model / MANIFEST_FILE)
    assert open_manifest(model, tmp_path / "cache") == manifest
    assert not (tmp_path / "cache").exists()


def test_a_manifest_is_made_once_and_cached(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = open_manifest(model, tmp_path / "cache")
    assert len(_cached(tmp_path / "cache")) == 1
    monkeypatch.setattr("shoal.experts.manifest_maker._make", lambda *_: pytest.fail("made again"))
    assert open_manifest(model, tmp_path / "cache") == manifest


def test_a_damaged_cache_is_made_anew(model: Path, tmp_path: Path) -> None:
    manifest = open_manifest(model, tmp_path / "cache")
    (path,) = _cached(tmp_path / "cache")
    _flip_bit(path, 1000)
    assert open_manifest(model, tmp_path / "cache") == manifest
    assert load_manifest(path) == manifest


def test_a_cached_manifest_of_a_changed_checkpoint_is_not_used(model: Path, tmp_path: Path) -> None:
    root = open_manifest(model, tmp_path / "cache").root
    path = model / "model.safetensors"
    times = path.stat()
    _flip_bit(path, -1)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # same name, size, modification time and header
    assert open_manifest(model, tmp_path / "cache").root != root


def test_a_cached_manifest_of_a_changed_config_is_not_used(model: Path, tmp_path: Path) -> None:
    root = open_manifest(model, tmp_path / "cache").root
    _change_config(model, topk_group=3)
    assert open_manifest(model, tmp_path / "cache").root != root


def test_a_cache_that_cannot_be_written_is_a_clear_error(model: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InvalidRequest, match="cannot be written"):
        open_manifest(model, tmp_path / "cache")


@pytest.mark.parametrize("change", [{"topk_group": 3}, {"num_hidden_layers": 2}, {"first_k_dense_replace": 2}])
def test_a_shipped_manifest_of_another_config_is_refused(
    model: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    write_manifest(make_manifest(model), model / MANIFEST_FILE)
    _change_config(model, **change)
    with pytest.raises(CheckpointError, match="not the config"):
        open_manifest(model, tmp_path)


def test_a_shipped_manifest_of_other_tensors_is_refused_by_name(model: Path, tmp_path: Path) -> None:
    write_manifest(make_manifest(model), model / MANIFEST_FILE)
    tensors = read_tensors(model)
    write_tensors(model, tensors | {"model.extra": torch.ones(1)}, num_files=1)
    with pytest.raises(CheckpointError, match=r"tensor model\.extra: not in the manifest"):
        open_manifest(model, tmp_path)
    del tensors["model.norm.weight"]
    write_tensors(model, tensors, num_files=1)
    with pytest.raises(CheckpointError, match=r"tensor model\.norm\.weight: in the manifest only"):
        open_manifest(model, tmp_path)


def test_a_weight_that_is_not_finite_is_named_when_the_manifest_is_made(model: Path) -> None:
    tensors = read_tensors(model)
    tensors["model.layers.2.mlp.experts.3.down_proj.weight"][0, 0] = float("nan")
    write_tensors(model, tensors, num_files=1)
    with pytest.raises(
        ShoalError, match=r"model\.safetensors: model\.layers\.2\.mlp\.experts\.3: tensor down: .*finite"
    ):
        make_manifest(model)
