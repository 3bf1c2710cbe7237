"""The seam of the directory: signed, expiring records of who holds what (DESIGN §4, §5).

Back ends: `hivemind_dht` (Kademlia), `memory` (tests, simulation), `static` (a file, or the records of an invite).
A directory is a hint and never an authority: records are verified here, and holders prove themselves when connected.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shoal.protocol.ids import LayerId
from shoal.protocol.records import HolderRecord
from shoal.protocol.revocation_list import RevocationList


class Directory(Protocol):
    """Who holds which experts of which layer."""

    async def publish(self, records: Sequence[HolderRecord]) -> None:
        """Store our own signed records, each until its expiry; a later `seq` replaces an earlier one.

        Raises:
            NetworkError: no other peer took them (a first peer alone in its swarm keeps its own and that is no error).
        """

    async def lookup(self, model_root: bytes, layers: Sequence[LayerId]) -> dict[LayerId, list[HolderRecord]]:
        """All valid, unexpired records of these layers, verified, at most one per holder and layer, sorted by peer id.

        Layers without a record map to an empty list.
        """

    async def aclose(self) -> None:
        """Leave. Records stay until they expire; withdraw by publishing an empty bitmap first."""


@dataclass(frozen=True, slots=True)
class Posted:
    """A revocation list as it was found: not verified. `expires_at_s`: Unix time."""

    encoded: bytes
    expires_at_s: float


class RevocationBoard(Protocol):
    """Where a private swarm's revocation lists hang (PROTOCOL.md §7.2). Any member may post what the founder signed."""

    async def post(self, revocations: RevocationList) -> None:
        """Hang up a list for `RECORD_TTL_S`, beside those of other numbers.

        Raises:
            NetworkError: nobody took it.
        """

    async def posted(self) -> list[Posted]:
        """The lists that hang there.

        Raises:
            NetworkError: the directory does not answer.
        """
