"""Orders that all nodes agree on without a word: who comes first for a piece, and who rounds up. Pure hashes."""

from blake3 import blake3

from shoal.experts.pieces.pieces import Piece
from shoal.protocol.ids import PeerId


def rank(piece: Piece, peer: PeerId) -> bytes:
    """An order of peers that is another for each piece, and the same for all who look."""
    return blake3(piece.digest + peer.encode()).digest()


def reversed_rank(ranked: bytes) -> bytes:
    """Sorts last what sorts first: whoever helps another begins where that one ends."""
    return bytes(255 - byte for byte in ranked)


def chance_of(peer: PeerId) -> float:
    """0 to 1, each peer's own."""
    return int.from_bytes(blake3(peer.encode()).digest(4)) / 2**32
