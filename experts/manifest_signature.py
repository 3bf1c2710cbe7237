"""Who vouches for a model: signatures over its root, in `shoal.manifest.sig` beside the manifest.

A signature says "these are the weights that I published"; whether that key is to be trusted is its reader's business.
The file: `{"shoal_signatures": 1, "signatures": [{"peer": …, "signature": …}]}`, the signature (Ed25519, hex) over
`MANIFEST_CONTEXT`, the root. Knows keys and roots; knows no weights.
"""

import json
import os
from pathlib import Path

from shoal.experts.safetensors_header import parse_object
from shoal.protocol.errors import CheckpointError, ShoalError
from shoal.protocol.identity import SIGNATURE_BYTES, Identity, verify
from shoal.protocol.ids import PeerId
from shoal.protocol.version import MANIFEST_CONTEXT

SIGNATURE_FILE = "shoal.manifest.sig"

MAX_SIGNATURES = 64
MAX_SIGNATURE_FILE_BYTES = 64 * 1024


def sign_root(identity: Identity, root: bytes) -> bytes:
    """Our signature over a root (32 bytes); 64 bytes."""
    return identity.sign(MANIFEST_CONTEXT + root)


def add_signature(path: Path, identity: Identity, root: bytes) -> tuple[PeerId, ...]:
    """Put our signature into the file, beside those that are there; returns all signers.

    Raises:
        CheckpointError: the file is damaged, or one of its signatures is of another root.
    """
    signatures = dict(_read(path)) if path.exists() else {}
    for peer, signature in signatures.items():
        _check(path, peer, signature, root)
    signatures[identity.peer] = sign_root(identity, root)
    value = {
        "shoal_signatures": 1,
        "signatures": [{"peer": peer, "signature": raw.hex()} for peer, raw in sorted(signatures.items())],
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="ascii")
    temporary.replace(path)
    return tuple(sorted(signatures))


def signers(path: Path, root: bytes) -> tuple[PeerId, ...]:
    """Whose signatures of this root are in the file; none if there is no file.

    Raises:
        CheckpointError: the file is damaged, or a signature in it does not fit: then none of them counts.
    """
    if not path.exists():
        return ()
    signatures = _read(path)
    for peer, signature in signatures:
        _check(path, peer, signature, root)
    return tuple(peer for peer, _ in signatures)


def _check(path: Path, peer: PeerId, signature: bytes, root: bytes) -> None:
    try:
        verify(peer, signature, MANIFEST_CONTEXT + root)
    except ShoalError as error:
        raise CheckpointError(path.name, None, f"{error}, root {root.hex()[:16]}…") from error


def _read(path: Path) -> list[tuple[PeerId, bytes]]:
    if path.stat().st_size > MAX_SIGNATURE_FILE_BYTES:
        raise CheckpointError(path.name, None, f"more than {MAX_SIGNATURE_FILE_BYTES} bytes")
    value = parse_object(path.read_bytes(), path.name)
    entries = value.get("signatures")
    if value.get("shoal_signatures") != 1 or not isinstance(entries, list) or len(entries) > MAX_SIGNATURES:
        raise CheckpointError(path.name, None, "not a list of signatures of version 1")
    return [_entry(path.name, entry) for entry in entries]


def _entry(file: str, entry: object) -> tuple[PeerId, bytes]:
    if not isinstance(entry, dict) or entry.keys() != {"peer", "signature"}:
        raise CheckpointError(file, None, "an entry that is not peer and signature")
    peer, words = entry["peer"], entry["signature"]
    if not isinstance(peer, str) or not isinstance(words, str) or len(words) != 2 * SIGNATURE_BYTES:
        raise CheckpointError(file, None, "an entry that is not a peer id and 64 bytes")
    try:
        return PeerId(peer), bytes.fromhex(words)
    except ValueError:
        raise CheckpointError(file, None, "a signature that is not hex") from None
