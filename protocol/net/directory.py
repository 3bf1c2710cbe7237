"""The seam of the directory: signed, expiring records of who holds what (DESIGN §4, §5).

Back ends: `hivemind_dht` (Kademlia), `memory` (tests, simulation), `static` (a file, or the records of an invite).
A directory is a hint and never an authority: records are verified here, and holders prove themselves when connected.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shoal.protocol.ids import LayerId, PeerId
from shoal.protocol.records import HolderRecord, NodeRecord
from shoal.protocol.revocation_list import RevocationList


class Directory(Protocol):
    """Who holds which experts of which layer."""

    async def publish(self, record: NodeRecord) -> None:
        """Say this of ourselves for `limits.RECORD_TTL_S`, in place of what we said before.

        To say the same again is cheap: a pulse.

        Raises:
            NetworkError: no other peer took it (a first peer alone in its swarm keeps its own and that is no error).
        """

    async def lookup(
        self, model_root: bytes, layers: Sequence[LayerId], max_age_s: float = 0.0
    ) -> dict[LayerId, list[HolderRecord]]:
        """What every live holder of a model says of each of these layers, verified, sorted by peer id.

        A holder stands under every layer, with no experts where it holds none. max_age_s: how old the answer may be;
        with more than 0 it may come from memory, and then those that have just come are missing.
        """

    def is_barred(self, peer: PeerId) -> bool:
        """Whether a peer whose record we had is known to be the node of a member whose token was revoked. Its records
        are in no answer any more; who is connected to it leaves it."""

    async def aclose(self) -> None:
        """Leave. Records stay until they expire; withdraw by publishing one without experts first."""


@dataclass(frozen=True, slots=True)
class Posted:
    """A revocation list as it was found: not verified. `expires_at_s`: Unix time."""

    encoded: bytes
    expires_at_s: float


class RevocationBoard(Protocol):
    """How a private swarm's revocation lists go round (PROTOCOL.md §7.2). Any member may post the founder's."""

    async def post(self, revocations: RevocationList) -> None:
        """Give a list to others, who pass it on.

        Raises:
            NetworkError: nobody took it.
        """

    async def posted(self) -> list[Posted]:
        """The latest list that others have told us.

        Raises:
            NetworkError: the directory does not answer.
        """
