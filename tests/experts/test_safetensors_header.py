"""Headers that a hostile or broken file may have."""

import json

import pytest

from shoal.experts.safetensors_header import MAX_TENSORS, TensorEntry, parse_header
from shoal.protocol.errors import CheckpointError


def _tensor(begin: int, end: int, shape: object = None, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def _refusal(header: object, data_bytes: int = 8) -> CheckpointError:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    with pytest.raises(CheckpointError) as caught:
        parse_header(raw, data_bytes, "a.safetensors")
    assert caught.value.file == "a.safetensors"
    assert len(str(caught.value)) < 1000
    return caught.value


def test_a_header_gives_its_tensors() -> None:
    header = {"__metadata__": {"format": "pt"}, "b": _tensor(4, 8, [1, 1]), "a": _tensor(0, 4, []), "e": _tensor(8, 8)}
    assert parse_header(json.dumps(header).encode() + b"   ", 8, "f") == {
        "b": TensorEntry("F32", (1, 1), 4, 4),
        "a": TensorEntry("F32", (), 0, 4),
        "e": TensorEntry("F32", (0,), 8, 0),
    }


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"7", "not a JSON object"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not JSON"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "not JSON"),
        (b'{"a": ' + b"[" * 100_000, "not JSON"),
        (b"{" * (MAX_TENSORS + 3), f"more than {MAX_TENSORS} tensors"),
    ],
)
def test_a_header_that_is_no_object_is_refused(raw: bytes, words: str) -> None:
    assert words in _refusal(raw).reason


def test_a_tensor_named_twice_is_refused_by_name() -> None:
    entry = json.dumps(_tensor(0, 8))
    error = _refusal(f'{{"a.weight": {entry}, "b": {entry}, "a.weight": {entry}}}'.encode())
    assert (error.tensor, error.reason) == ("a.weight", "named twice")


def test_a_field_given_twice_is_refused() -> None:
    error = _refusal(b'{"a": {"dtype": "F32", "shape": [2], "shape": [1], "data_offsets": [0, 8]}}')
    assert (error.tensor, error.reason) == ("shape", "named twice")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (7, "not described"),
        ({"dtype": "F32", "shape": [2]}, "not described"),
        (_tensor(0, 8) | {"extra": 1}, "not described"),
        (_tensor(0, 8, dtype="F4"), "unknown dtype 'F4'"),
        (_tensor(0, 8, dtype=["F32"]), "unknown dtype"),
        (_tensor(0, 8, shape=[2.0]), "shape"),
        (_tensor(0, 8, shape=[True, 2]), "shape"),
        (_tensor(0, 8, shape=[-2]), "shape"),
        (_tensor(0, 8, shape=[2**62, 4]), "shape"),
        (_tensor(0, 8, shape=[1] * 1_000_000), "shape"),
        (_tensor(0, 8, shape={"0": 2}), "shape"),
        (_tensor(0, 8, shape=[3]), "8 bytes of data, F32[3] has 12"),
        (_tensor(0, 8, shape=[2**40] * 8), "8 bytes of data"),
        (_tensor(0, 8) | {"data_offsets": [0, 8, 8]}, "data_offsets"),
        (_tensor(0, 8) | {"data_offsets": [-8, 0]}, "data_offsets"),
        (_tensor(0, 8) | {"data_offsets": [8, 0]}, "-8 bytes of data"),
        (_tensor(0, 8) | {"data_offsets": "08"}, "data_offsets"),
    ],
)
def test_a_bad_entry_is_refused_by_name(entry: object, words: str) -> None:
    error = _refusal({"model.bad": entry})
    assert error.tensor == "model.bad"
    assert words in error.reason


@pytest.mark.parametrize(
    ("header", "tensor", "words"),
    [
        ({"a": _tensor(0, 8), "b": _tensor(4, 8)}, "b", "overlaps"),
        ({"a": _tensor(0, 8), "b": _tensor(0, 8)}, "b", "overlaps"),
        ({"a": _tensor(4, 8)}, "a", "leaves a hole"),
        ({"a": _tensor(0, 4)}, "a", "belong to no tensor"),
        ({}, None, "belong to no tensor"),
        ({"a": _tensor(0, 8), "b": _tensor(8, 16)}, "b", "truncated"),
    ],
)
def test_data_must_be_covered_exactly_once(header: dict[str, object], tensor: str | None, words: str) -> None:
    error = _refusal(header)
    assert error.tensor == tensor
    assert words in error.reason


@pytest.mark.parametrize("name", ["", "x" * 513, "a\nb", "a\x00b"])
def test_a_strange_name_is_refused(name: str) -> None:
    assert "name of" in _refusal({name: _tensor(0, 8)}).reason


@pytest.mark.parametrize("metadata", [7, {"format": 7}, {"a": {"b": "c"}}, ["pt"]])
def test_metadata_that_is_not_strings_is_refused(metadata: object) -> None:
    assert _refusal({"__metadata__": metadata, "a": _tensor(0, 8)}).tensor == "__metadata__"
