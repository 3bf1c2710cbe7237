"""Files on disk: only what is asked for is read, and nothing that contradicts itself."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shoal.experts.checkpoint import INDEX_FILE, SINGLE_FILE, TORCH_DTYPES, Checkpoint
from shoal.experts.safetensors_header import ITEM_BYTES, MAX_HEADER_BYTES
from shoal.protocol.errors import CheckpointError, ModelNotFound
from tests.checkpoints import SHAPES, read_tensors, write_checkpoint

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(5).bfloat16(), "c.weight": torch.zeros(0, 4)}


def _write_shards(directory: Path) -> None:
    save_file({"a": TENSORS["a"]}, directory / "one.safetensors")
    save_file({"b": TENSORS["b"], "c.weight": TENSORS["c.weight"]}, directory / "two.safetensors")
    _write_index(directory, {"a": "one.safetensors", "b": "two.safetensors", "c.weight": "two.safetensors"})


def _write_index(directory: Path, weight_map: object) -> None:
    (directory / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _header_bytes(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def _refusal(directory: Path, name: str = "b") -> CheckpointError:
    with pytest.raises(CheckpointError) as caught, Checkpoint.open(directory) as checkpoint:
        checkpoint.read(name)
    return caught.value


def test_tensors_come_back_as_the_safetensors_library_reads_them(tmp_path: Path) -> None:
    for name in ("plain", "two_dense_two_shared_bf16", "ragged_fp8_mtp_sharded"):
        write_checkpoint(tmp_path / name, SHAPES[name], seed=1)
        expected = read_tensors(tmp_path / name)
        with Checkpoint.open(tmp_path / name) as checkpoint:
            assert checkpoint.names == expected.keys()
            for tensor_name, tensor in expected.items():
                stored = checkpoint.read(tensor_name)
                assert stored.data.dtype == tensor.dtype
                assert stored.shape == tensor.shape
                assert torch.equal(stored.data.view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))


def test_every_dtype_of_the_format_is_read_with_its_size() -> None:
    assert TORCH_DTYPES.keys() == ITEM_BYTES.keys()
    assert {name: dtype.itemsize for name, dtype in TORCH_DTYPES.items()} == ITEM_BYTES


def test_only_the_headers_and_bytes_asked_for_are_read(tmp_path: Path) -> None:
    _write_shards(tmp_path)
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.bytes_read == 0
        checkpoint.read("a")
        checkpoint.read("a")
        assert checkpoint.bytes_read == _header_bytes(tmp_path / "one.safetensors") + 2 * 24
        checkpoint.entry("b")
        assert checkpoint.bytes_read == sum(map(_header_bytes, tmp_path.glob("*.safetensors"))) + 2 * 24


def test_an_empty_tensor_is_read(tmp_path: Path) -> None:
    _write_shards(tmp_path)
    with Checkpoint.open(tmp_path) as checkpoint:
        stored = checkpoint.read("c.weight")
    assert (stored.shape, bytes(stored.raw)) == ((0, 4), b"")


def test_a_directory_without_a_checkpoint_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such model directory"):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(ModelNotFound, match=r"neither model\.safetensors nor"):
        Checkpoint.open(tmp_path)


def test_a_single_file_beside_an_index_is_refused(tmp_path: Path) -> None:
    _write_shards(tmp_path)
    save_file(TENSORS, tmp_path / SINGLE_FILE)
    assert "two models" in _refusal(tmp_path).reason


def test_a_missing_shard_is_refused_only_when_it_is_needed(tmp_path: Path) -> None:
    _write_shards(tmp_path)
    (tmp_path / "two.safetensors").unlink()
    with Checkpoint.open(tmp_path) as checkpoint:
        assert torch.equal(checkpoint.read("a").data, TENSORS["a"])
    error = _refusal(tmp_path)
    assert (error.file, error.reason) == ("two.safetensors", "cannot be opened: No such file or directory")


def test_a_missing_tensor_is_refused_by_name(tmp_path: Path) -> None:
    _write_shards(tmp_path)
    error = _refusal(tmp_path, "model.d")
    assert (error.file, error.tensor, error.reason) == (INDEX_FILE, "model.d", "missing")


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    _write_shards(tmp_path)
    save_file(TENSORS, tmp_path / "two.safetensors")
    error = _refusal(tmp_path)
    assert (error.file, error.tensor) == ("two.safetensors", "a")
    assert error.reason == "the index has it in one.safetensors"


def test_a_tensor_that_the_index_does_not_have_is_refused(tmp_path: Path) -> None:
    _write_shards(tmp_path)
    save_file(TENSORS | {"extra": torch.ones(1)}, tmp_path / "two.safetensors")
    _write_index(tmp_path, {"b": "two.safetensors", "c.weight": "two.safetensors", "a": "two.safetensors"})
    error = _refusal(tmp_path)
    assert (error.file, error.tensor, error.reason) == ("two.safetensors", "extra", "the index does not have it")


def test_a_tensor_that_the_header_does_not_have_is_refused(tmp_path: Path) -> None:
    _write_shards(tmp_path)
    save_file({"b": TENSORS["b"]}, tmp_path / "two.safetensors")
    error = _refusal(tmp_path)
    assert (error.file, error.tensor) == ("two.safetensors", "c.weight")


@pytest.mark.parametrize(
    "file",
    [
        "../one.safetensors",
        "/etc/passwd",
        "sub/one.safetensors",
        "sub\\one.safetensors",
        "C:one.safetensors",
        ".safetensors",
        "one.bin",
        "..",
        "",
        "one\n.safetensors",
        "x" * 300 + ".safetensors",
        7,
        None,
        ["one.safetensors"],
    ],
)
def test_an_index_cannot_name_a_file_elsewhere(tmp_path: Path, file: object) -> None:
    _write_shards(tmp_path)
    shutil.copy(tmp_path / "one.safetensors", tmp_path.parent / "one.safetensors")
    _write_index(tmp_path, {"a": "one.safetensors", "b": file})
    error = _refusal(tmp_path)
    assert (error.file, error.tensor) == (INDEX_FILE, "b")


@pytest.mark.parametrize("weight_map", [None, {}, [], 7, "a"])
def test_an_index_without_a_map_is_refused(tmp_path: Path, weight_map: object) -> None:
    _write_index(tmp_path, weight_map)
    assert _refusal(tmp_path).reason == "no weight_map"


def test_an_index_that_names_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    _write_shards(tmp_path)
    (tmp_path / INDEX_FILE).write_text('{"weight_map": {"b": "one.safetensors", "b": "two.safetensors"}}')
    error = _refusal(tmp_path)
    assert (error.tensor, error.reason) == ("b", "named twice")


def test_a_name_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    _write_index(tmp_path, {"\x1b[2J": "one.safetensors"})
    assert "\x1b" not in str(_refusal(tmp_path))


@pytest.mark.parametrize("kept", [0, 7, 8, 60, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    save_file(TENSORS, tmp_path / SINGLE_FILE)
    whole = (tmp_path / SINGLE_FILE).read_bytes()
    (tmp_path / SINGLE_FILE).write_bytes(whole[:kept])
    error = _refusal(tmp_path)
    assert error.file == SINGLE_FILE
    assert "truncated" in error.reason or "a header of" in error.reason


def test_a_file_that_shrinks_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / SINGLE_FILE)
    with Checkpoint.open(tmp_path) as checkpoint:
        os.truncate(tmp_path / SINGLE_FILE, checkpoint.bytes_read + 3)
        with pytest.raises(CheckpointError, match="truncated: the file ends at") as caught:
            checkpoint.read("a")
    assert (caught.value.file, caught.value.tensor) == (SINGLE_FILE, "a")


def test_bytes_after_the_last_tensor_are_refused(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / SINGLE_FILE)
    with (tmp_path / SINGLE_FILE).open("ab") as file:
        file.write(b"\0")
    assert "belong to no tensor" in _refusal(tmp_path).reason


@pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 100_000_001, 2**63, 2**64 - 1])
def test_a_header_over_its_limit_is_refused_before_it_is_read(tmp_path: Path, length: int) -> None:
    with (tmp_path / SINGLE_FILE).open("wb") as file:
        file.write(length.to_bytes(8, "little"))
        file.truncate(200_000_000)  # sparse
    error = _refusal(tmp_path)
    assert (error.file, error.reason) == (
        SINGLE_FILE,
        f"a header of {length} bytes, {MAX_HEADER_BYTES} are possible",
    )


def test_a_shard_that_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    _write_shards(tmp_path)
    (tmp_path / "two.safetensors").unlink()
    os.mkfifo(tmp_path / "two.safetensors")
    assert _refusal(tmp_path).reason == "not a regular file"


def test_a_link_is_followed_because_download_caches_are_made_of_them(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "blob")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / SINGLE_FILE).symlink_to("../blob")
    with Checkpoint.open(tmp_path / "snapshot") as checkpoint:
        assert torch.equal(checkpoint.read("a").data, TENSORS["a"])


def test_a_file_that_is_replaced_after_it_was_opened_gives_its_old_bytes(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / SINGLE_FILE)
    with Checkpoint.open(tmp_path) as checkpoint:
        save_file({"a": torch.ones(9)}, tmp_path / "new.safetensors")
        (tmp_path / "new.safetensors").replace(tmp_path / SINGLE_FILE)
        assert torch.equal(checkpoint.read("a").data, TENSORS["a"])
