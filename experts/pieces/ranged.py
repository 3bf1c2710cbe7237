"""A piece too large to be held in memory: its head, and its body by ranges from where it lies.

A tensor of the trunk is such a piece; DeepSeek-V3's embedding has 1.85 GB. Knows bytes; knows no files.
"""

from collections.abc import Callable
from dataclasses import dataclass

from blake3 import blake3

STEP_BYTES = 8 * 1024 * 1024
"""What is in memory at a time while a piece is hashed."""


@dataclass(frozen=True, slots=True)
class RangedPiece:
    """`read_body(begin, size)` gives so many bytes, exactly; it may raise OSError or CheckpointError."""

    head: bytes
    body_bytes: int
    read_body: Callable[[int, int], bytes | bytearray]

    def __len__(self) -> int:
        return len(self.head) + self.body_bytes

    def read(self, begin: int, size: int) -> bytes:
        """`size` bytes from `begin`, within the piece. Not verified since `digest`."""
        from_head = self.head[begin : begin + size]
        left = size - len(from_head)
        return from_head + self.read_body(max(0, begin - len(self.head)), left) if left else from_head

    def digest(self) -> bytes:
        """BLAKE3 of all of it, step by step."""
        hasher = blake3(self.head, max_threads=blake3.AUTO)
        for begin in range(0, self.body_bytes, STEP_BYTES):
            hasher.update(self.read_body(begin, min(STEP_BYTES, self.body_bytes - begin)))
        return hasher.digest()
