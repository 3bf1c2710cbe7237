"""Names and numbers that two peers must agree on exactly (PROTOCOL.md §2). Changing one is a new protocol."""

PROTOCOL_VERSION = 1
"""Version of frames and messages; carried in each frame and in the handshake."""

DIRECTORY_VERSION = 2
"""Version of node records and of SYNC; carried in both."""

DIRECTORY_RPC = f"ShoalDirectoryV{DIRECTORY_VERSION}"
"""Of the directory's RPCs, before the swarm's tag; part of the libp2p protocol ids, so that we meet no other DHT."""

LIBP2P_PROTOCOL_ID = "/shoal/expert/1.0.0"
"""libp2p stream protocol of the data path."""

HANDSHAKE_CONTEXT = b"shoal handshake v1: client proves its key\x00"
"""Domain separation of the handshake signature: a signature made for one purpose is worth nothing for another."""

RECORD_CONTEXT = b"shoal node record v2\x00"
"""Domain separation of a node record's signature."""

PULSE_CONTEXT = b"shoal pulse v1\x00"
"""Domain separation of the hash that leads from a pulse to the one before it, and of a chain's seed."""

DIRECTORY_KEY_CONTEXT = b"shoal directory key v2\x00"
"""Domain separation of the hash that names a model in the directory."""

REQUEST_HASH_CONTEXT = "shoal 2026-11 request hash v1"
"""BLAKE3 key-derivation context under which a request is hashed; the reply must carry this hash."""

MEMBERSHIP_CONTEXT = b"shoal membership v1: client proves its token\x00"
"""Domain separation of the token's signature in MEMBERHELLO."""

VOUCHER_CONTEXT = b"shoal member's peer v1\x00"
"""Domain separation of a token's signature over a peer's key, in a record of a private swarm."""

CERTIFICATE_CONTEXT = b"shoal token certificate v1\x00"
"""Domain separation of the founder's signature over a token's key."""

FOUNDER_DERIVATION = "shoal 2026-11 founder secret v1"
"""BLAKE3 key-derivation context for everything that follows from a founder's secret."""

SEAL_CONTEXT = b"shoal sealed record v1\x00"
"""Domain separation of the keys under which records of a private swarm are sealed."""

WORD_CONTEXT = b"shoal member's word v1\x00"
"""Domain separation of what members show each other in the directory's calls."""

TAG_CONTEXT = b"shoal swarm tag v1\x00"
"""Domain separation of the tag in the names of a private swarm's directory RPCs."""

MANIFEST_CONTEXT = b"shoal manifest v1\x00"
"""Domain separation of a signature over a model's root."""

LAN_CONTEXT = b"shoal lan announcement v1\x00"
"""Domain separation of the key under which a private swarm's LAN announcements are sealed."""

REVOCATION_CONTEXT = b"shoal revocation list v1\x00"
"""Domain separation of the founder's signature over a revocation list."""
