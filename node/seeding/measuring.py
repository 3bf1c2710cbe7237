"""What peers would give, before anything is kept: how long a piece is, exactly, and how fast some of them give.

For forecasts. A first chunk says how long its piece is; pieces of experts differ by the digits in their names only.
Knows peers and channels; keeps nothing that comes.
"""

import asyncio
from collections.abc import Sequence
from itertools import islice

from shoal.experts.manifest import Manifest
from shoal.experts.pieces.pieces import ExpertPiece, Piece
from shoal.experts.pieces.ranges import parts_of
from shoal.experts.specs import ModelSpec
from shoal.node.seeding.peers import Peers
from shoal.protocol import limits
from shoal.protocol.errors import ShoalError
from shoal.protocol.ids import PeerId
from shoal.protocol.messages import Fetch

NUM_ASKED = 4
"""Peers whose pace is measured, one after another."""

MEASURED_BYTES = 4 * limits.MIB
"""Of a piece, from each: a tenth of an expert of DeepSeek-V3."""

DEADLINE_MS = 15_000

CHUNKS_AT_ONCE = 8


async def expert_sizes(peers: Peers, manifest: Manifest, spec: ModelSpec, pieces: Sequence[Piece]) -> dict[bytes, int]:
    """The length of each expert's piece, by digest, as the first peer that gives one says it; none: nobody gives any.

    What a peer says is not proved before its piece has come: this is for a forecast.
    """
    experts = [piece for piece in pieces if isinstance(piece, ExpertPiece)]
    for piece in experts:
        for peer in islice(sorted(peers.holders(piece)), NUM_ASKED):
            try:
                length, _ = await _chunk(peers, peer, manifest.root, piece, 0, 1)
            except ShoalError:
                continue
            other = length - _name_bytes(piece, manifest, spec)
            return {each.digest: other + _name_bytes(each, manifest, spec) for each in experts}
    return {}


async def rate(peers: Peers, manifest: Manifest, piece: Piece) -> float | None:
    """Bytes per second of a part of this piece, of several holders together; None: nobody gives it now."""
    rates = [
        await _rate_of(peers, peer, manifest.root, piece) for peer in islice(sorted(peers.holders(piece)), NUM_ASKED)
    ]
    return sum(rates) or None


async def _rate_of(peers: Peers, peer: PeerId, root: bytes, piece: Piece) -> float:
    clock = asyncio.get_running_loop().time
    try:
        length, _ = await _chunk(peers, peer, root, piece, 0, 1)
        begun_s, size = clock(), min(length, MEASURED_BYTES)
        begins = list(range(0, size, limits.MAX_CHUNK_BYTES))
        arrived = 0
        for at in range(0, len(begins), CHUNKS_AT_ONCE):
            asked = [
                _chunk(peers, peer, root, piece, begin, min(limits.MAX_CHUNK_BYTES, size - begin))
                for begin in begins[at : at + CHUNKS_AT_ONCE]
            ]
            arrived += sum([came for _, came in await asyncio.gather(*asked)])
    except ShoalError:  # it gives nothing now, to us
        return 0.0
    return arrived / max(clock() - begun_s, 1e-6)


async def _chunk(peers: Peers, peer: PeerId, root: bytes, piece: Piece, begin: int, size: int) -> tuple[int, int]:
    """The length of the whole piece, and of what came of it."""
    channel = await peers.channel(peer)
    reply = await channel.fetch(Fetch(root, piece.digest, begin, size, DEADLINE_MS))
    return reply.message.piece_bytes, reply.message.size


def _name_bytes(piece: ExpertPiece, manifest: Manifest, spec: ModelSpec) -> int:
    return sum(len(part.name.encode()) for part in parts_of(piece, manifest.weight_format, spec))
