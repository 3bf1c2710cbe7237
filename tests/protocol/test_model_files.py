"""Lists of a model's small files: one way to write each, and nothing that leads out of a folder."""

import contextlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol.errors import InvalidRequest, Malformed
from shoal.protocol.identity import Identity
from shoal.protocol.invite import Invite, decode_invite, encode_invite
from shoal.protocol.membership import Founder
from shoal.protocol.model_files import (
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_LIST_BYTES,
    ListedFile,
    decode_files,
    encode_files,
    list_digest,
)

DIGEST, ROOT = b"d" * 32, b"r" * 32
ADDRESS = f"/ip4/192.0.2.7/tcp/4001/p2p/{Identity.from_seed(b'a' * 32).peer}"


def test_a_list_survives_its_way_in_order_of_names() -> None:
    files = (ListedFile("tokenizer.json", 7, DIGEST), ListedFile("config.json", 0, DIGEST))
    assert decode_files(encode_files(files)) == tuple(reversed(files))


def test_the_longest_list_fits_its_bound() -> None:
    files = [ListedFile(f"{number:x}".rjust(64, "f"), MAX_FILE_BYTES, DIGEST) for number in range(MAX_FILES)]
    assert len(encode_files(files)) <= MAX_LIST_BYTES


@pytest.mark.parametrize(
    "name", ["", ".hidden", "../config.json", "a/b", "a\\b", "-rf", "x" * 65, "ä", "a b", "a\n", 7, b"config.json"]
)
def test_a_name_that_is_no_plain_files_is_refused(name: object) -> None:
    with pytest.raises(Malformed):
        decode_files(msgpack.packb({1: 1, 2: [[name, 1, DIGEST]]}))


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {1: 1},
        {1: 2, 2: [["a", 1, DIGEST]]},
        {1: 1, 2: []},
        {1: 1, 2: [["a", 1, DIGEST]] * 2},
        {1: 1, 2: [["b", 1, DIGEST], ["a", 1, DIGEST]]},
        {1: 1, 2: [[f"{n:02}", 1, DIGEST] for n in range(MAX_FILES + 1)]},
        {1: 1, 2: [["a", MAX_FILE_BYTES + 1, DIGEST]]},
        {1: 1, 2: [["a", -1, DIGEST]]},
        {1: 1, 2: [["a", True, DIGEST]]},
        {1: 1, 2: [["a", 1, b"short"]]},
        {1: 1, 2: [["a", 1]]},
        {1: 1, 2: [["a", 1, DIGEST]], 3: 0},
    ],
)
def test_what_is_out_of_bounds_is_refused(value: object) -> None:
    with pytest.raises(Malformed):
        decode_files(msgpack.packb(value))


def test_a_second_way_to_write_a_list_is_refused() -> None:
    encoded = encode_files([ListedFile("a", 1, DIGEST)])
    for other in (encoded + b"\x00", encoded.replace(b"a\x01", b"a\xcc\x01"), b"\xff" * (MAX_LIST_BYTES + 1)):
        with pytest.raises(Malformed):
            decode_files(other)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_list_or_malformed(data: bytes) -> None:
    with contextlib.suppress(Malformed):
        assert encode_files(decode_files(data)) == data


@pytest.mark.parametrize("membership", [None, Founder(b"F" * 32).member(b"1" * 16)])
def test_a_token_carries_the_lists_digest_and_one_without_is_read_as_before(membership: object) -> None:
    for files in (None, list_digest(b"a list")):
        invite = Invite(ROOT, (ADDRESS,), membership, files)  # type: ignore[arg-type]  # what `parametrize` gives
        assert decode_invite(encode_invite(invite)) == invite


def test_a_digest_of_another_length_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        encode_invite(Invite(ROOT, (ADDRESS,), None, b"short"))
