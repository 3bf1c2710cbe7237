"""Keys, peer ids and key files."""

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol.errors import AuthenticationFailed, InvalidRequest, Malformed
from shoal.protocol.identity import Identity, load_or_create_identity, peer_id_of, public_key_of, verify
from shoal.protocol.ids import PeerId

SEED = bytes(range(32))


def test_a_peer_id_is_libp2ps_for_the_same_key():
    # RFC 8032 §7.1, test 1; the peer id was computed by go-libp2p's rule (identity multihash, base58btc)
    identity = Identity.from_seed(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert identity.public_key.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert identity.peer.startswith("12D3KooW")
    assert public_key_of(identity.peer) == identity.public_key
    assert identity.libp2p_private_key()[:4] == b"\x08\x01\x12\x40"
    assert len(identity.libp2p_private_key()) == 68


@given(st.binary(min_size=32, max_size=32))
def test_a_peer_id_contains_its_key(key):
    assert public_key_of(peer_id_of(key)) == key


@given(st.text(max_size=80))
def test_what_is_no_peer_id_is_malformed(text):
    try:
        key = public_key_of(PeerId(text))
    except Malformed:
        return
    assert peer_id_of(key) == text


def test_a_peer_id_of_absurd_length_is_not_even_decoded():
    with pytest.raises(Malformed, match="1000000 characters"):
        public_key_of(PeerId("1" * 1_000_000))


def test_a_signature_fits_one_key_and_one_message():
    identity, other = Identity.from_seed(SEED), Identity.from_seed(bytes(32))
    signature = identity.sign(b"message")
    verify(identity.peer, signature, b"message")
    for peer, signed, message in [
        (other.peer, signature, b"message"),
        (identity.peer, signature, b"massage"),
        (identity.peer, signature[:-1], b"message"),
        (identity.peer, bytes(64), b"message"),
    ]:
        with pytest.raises(AuthenticationFailed):
            verify(peer, signed, message)


def test_a_secret_is_not_shown():
    identity = Identity.from_seed(SEED)
    assert repr(SEED) not in repr(identity)
    assert identity.peer in repr(identity)


def test_a_key_file_is_made_once_private_and_read_again(tmp_path):
    path = tmp_path / "identity"
    first = load_or_create_identity(path, SEED)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_create_identity(path, bytes(32)) == first
    assert [file.name for file in tmp_path.iterdir()] == ["identity"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o620, 0o610])
def test_a_key_file_open_to_others_is_refused_with_the_cure(tmp_path, mode):
    path = tmp_path / "identity"
    load_or_create_identity(path, SEED)
    path.chmod(mode)
    with pytest.raises(InvalidRequest, match=f"{mode:04o}.*chmod 600"):
        load_or_create_identity(path, SEED)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_damaged_key_file_is_refused_and_kept(tmp_path, size):
    path = tmp_path / "identity"
    path.write_bytes(bytes(size))
    path.chmod(0o600)
    with pytest.raises(InvalidRequest, match=f"{size} bytes"):
        load_or_create_identity(path, SEED)
    assert path.read_bytes() == bytes(size)


def test_a_bad_seed_leaves_no_file(tmp_path):
    with pytest.raises(InvalidRequest):
        load_or_create_identity(tmp_path / "identity", b"short")
    assert list(tmp_path.iterdir()) == []


def test_of_two_programs_that_start_at_once_both_get_the_first_ones_key(tmp_path, monkeypatch):
    path = tmp_path / "identity"
    link = os.link

    def link_second(source: str, target: os.PathLike[str]) -> None:
        other = tmp_path / "other"
        other.write_bytes(bytes(32))
        other.chmod(0o600)
        link(other, target)
        link(source, target)

    monkeypatch.setattr(os, "link", link_second)
    assert load_or_create_identity(path, SEED) == Identity.from_seed(bytes(32))


def test_a_crash_while_writing_leaves_no_half_key(tmp_path, monkeypatch):
    def crash(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        load_or_create_identity(tmp_path / "identity", SEED)
    assert list(tmp_path.iterdir()) == []
