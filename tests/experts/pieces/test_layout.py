"""A layout says of a checkpoint what its index and headers say, in fewer bytes; nobody has to believe it."""

import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from shoal.experts.checkpoint import Checkpoint
from shoal.experts.pieces.layout import (
    LAYOUT_FILE,
    MAGIC,
    FileLayout,
    decode_layout,
    encode_layout,
    layout_of,
    write_layout,
)
from shoal.experts.safetensors_header import MAX_HEADER_BYTES, TensorEntry
from shoal.protocol.errors import CheckpointError
from shoal.simulations.rehearsal.layout import DEEPSEEK_V3_1, Tensor
from shoal.simulations.rehearsal.layout import files as published_files
from shoal.simulations.rehearsal.sparse import ORDER
from tests.checkpoints import SHAPES, write_checkpoint


def packed(value: object) -> bytes:
    return MAGIC + zlib.compress(json.dumps(value).encode())


def entry(begin: int) -> TensorEntry:
    return TensorEntry("F32", (2,), begin, 8)


@pytest.mark.parametrize("shape", ["plain", "ragged_fp8_mtp_sharded"])
def test_a_layout_says_what_index_and_headers_say(tmp_path: Path, shape: str) -> None:
    write_checkpoint(tmp_path / "model", SHAPES[shape], seed=3)
    size_bytes = write_layout(tmp_path / "model")
    raw = (tmp_path / "model" / LAYOUT_FILE).read_bytes()
    assert len(raw) == size_bytes > 0
    with Checkpoint.open(tmp_path / "model") as checkpoint:
        found = decode_layout(raw)
        assert found == layout_of(checkpoint)
        assert {name: file for file, each in found.items() for name in each.entries} == {
            name: checkpoint.file_of(name) for name in checkpoint.names
        }
    for file, each in found.items():
        assert each.size_bytes == (tmp_path / "model" / file).stat().st_size


def test_the_layout_of_deepseek_v3_has_a_thousandth_of_its_index_and_headers() -> None:
    files = {file: FileLayout(8, dict(_entries(tensors))) for file, tensors in published_files(DEEPSEEK_V3_1).items()}
    assert sum(len(each.entries) for each in files.values()) == 91_991
    assert len(encode_layout(files)) < 20_000


def _entries(tensors: Sequence[Tensor]) -> Iterator[tuple[str, TensorEntry]]:
    begin = 0
    for tensor in sorted(tensors, key=lambda tensor: (ORDER.index(tensor.dtype), tensor.name)):
        yield tensor.name, TensorEntry(tensor.dtype, tensor.shape, begin, tensor.size_bytes)
        begin += tensor.size_bytes


def test_names_with_signs_and_numbers_of_all_kinds_come_back(tmp_path: Path) -> None:
    names = ["a", "0", "7.w", "01.w", "x.007", "l.1.2.3.4.w", "é.3", "1234567890123", "q1_proj", "q_2"]
    files = {"a-1.safetensors": FileLayout(64, {name: entry(8 * i) for i, name in enumerate(names)})}
    assert decode_layout(encode_layout(files)) == files
    for name in ("a#b", "1.2.3.4.5"):
        with pytest.raises(CheckpointError, match="a name that a layout can not say"):
            encode_layout({"a.safetensors": FileLayout(8, {name: entry(0)})})


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "first bytes"),
        (b"shoallt2" + zlib.compress(b"{}"), "first bytes"),
        (MAGIC + b"nothing", "not compressed"),
        (MAGIC + zlib.compress(b"{}")[:-3], "cut short"),
        (MAGIC + zlib.compress(b"{}") + b"x", "bytes behind it"),
        (MAGIC + zlib.compress(b" " * (MAX_HEADER_BYTES + 1)), "more than"),
        (packed([]), "not a JSON object"),
        (packed({}), "not kinds and files"),
        (packed({"kinds": [], "files": {}}), "not kinds and files"),
        (packed({"kinds": [["a", "F32"]], "files": []}), "a kind is"),
        (packed({"kinds": [["a", "F99", [1]]], "files": []}), "F99"),
        (packed({"kinds": [["a", "F32", [-1]]], "files": []}), "shape"),
        (packed({"kinds": [["a", "F32", [1] * 9]], "files": []}), "shape"),
        (packed({"kinds": [["a", "F32", [2**40, 2**40]]], "files": []}), "a tensor of"),
        (packed({"kinds": [["\u0007", "F32", [1]]], "files": []}), "unprintable"),
        (packed({"kinds": [["a", "F32", [1]]], "files": [["../x.safetensors", 8, [0]]]}), "a file named"),
        (packed({"kinds": [["a", "F32", [1]]], "files": [["x.safetensors", -8, [0]]]}), "numbers that are none"),
        (packed({"kinds": [["a", "F32", [1]]], "files": [["x.safetensors", 8, [1]]]}), "of kind 1 of 1"),
        (packed({"kinds": [["a", "F32", [1]]], "files": [["x.safetensors", 8, [0, 0]]]}), "twice"),
        (packed({"kinds": [["a#", "F32", [1]]], "files": [["x.safetensors", 8, [0]]]}), "fewer numbers"),
        (packed({"kinds": [["a#", "F32", [1]]], "files": [["x.safetensors", 8, [0], [1, 2]]]}), "more numbers"),
        (packed({"kinds": [["a", "F32", [1]]], "files": [["x.safetensors"]]}), "a file is"),
    ],
)
def test_what_is_no_layout_is_refused_by_what_is_wrong_with_it(raw: bytes, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        decode_layout(raw)


def test_the_documents_bytes_are_the_layout_that_it_describes() -> None:
    document = (Path(__file__).parents[3] / "PROTOCOL.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^```file-hex layout\n(.*?)^```$", document, re.DOTALL | re.MULTILINE)
    up = "model.layers.3.mlp.experts.{}.up_proj.weight"
    assert decode_layout(bytes.fromhex(block)) == {
        "model-00001-of-00002.safetensors": FileLayout(
            200, {up.format(i): TensorEntry("F32", (4, 8), 128 * i, 128) for i in range(2)}
        ),
        "model-00002-of-00002.safetensors": FileLayout(
            104, {"model.norm.weight": TensorEntry("BF16", (8,), 0, 16)}
        ),
    }  # fmt: skip
