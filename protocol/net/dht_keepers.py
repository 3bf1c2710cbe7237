"""Who keeps a roster: the peers nearest to its name in the DHT, searched rarely and remembered.

A search asks eight peers and more, each for its twenty neighbours: 20 kB. So it is made when there is a reason to: at
first, when a keeper has failed, when somebody nearer has become known, and now and then. Knows no records.
"""

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hivemind.dht.node import DHTNode
    from hivemind.p2p import PeerID

NUM_KEEPERS = 4
"""Peers that keep a record. Where a third of 24 nodes dies at once, all four of a roster do in 0.7 % of cases, and then
for one `PULSE_PERIOD_S`: the next pulse finds others."""

NUM_CANDIDATES = 8
"""Peers that a search brings: those that do not answer are passed over without another search."""

SEARCH_PERIOD_S = 1200.0
"""For changes that nothing told us of: nearer peers that we never met."""


class Keepers:
    """The keepers of one roster, nearest first. Use it in the event loop of `node`."""

    def __init__(self, node: "DHTNode", name: bytes) -> None:
        from hivemind.dht.routing import DHTID

        self._node = node
        self._key = DHTID.generate(name)
        self._found: dict[PeerID, int] = {}
        """Distance by peer, ascending."""
        self._searched_at = float("-inf")
        self._is_search_due = True

    async def find(self) -> "list[PeerID]":
        """Up to `NUM_CANDIDATES` peers, nearest first; none where we are alone.

        Cancellation: as if it had not been called.
        """
        if self.is_stale:
            await self._search()
        return list(self._found)

    @property
    def is_stale(self) -> bool:
        """Whether there is a reason to search."""
        is_old = asyncio.get_running_loop().time() - self._searched_at > SEARCH_PERIOD_S
        return self._is_search_due or is_old or self._knows_nearer()

    def failed(self, peer: "PeerID") -> None:
        """A keeper did not answer: it is none any more, and no neighbour either."""
        self._found.pop(peer, None)
        table = self._node.protocol.routing_table
        node_id = table.get(peer_id=peer)
        if node_id is not None:
            del table[node_id]
        self._is_search_due = self._is_search_due or len(self._found) < NUM_KEEPERS

    def _knows_nearer(self) -> bool:
        distances = list(self._found.values())
        worst = distances[NUM_KEEPERS - 1] if len(distances) >= NUM_KEEPERS else float("inf")
        table = self._node.protocol.routing_table
        nearest = table.get_nearest_neighbors(self._key, NUM_KEEPERS, exclude=self._node.node_id)
        return any(peer not in self._found and self._key.xor_distance(node_id) < worst for node_id, peer in nearest)

    async def _search(self) -> None:
        found = await self._node.find_nearest_nodes(
            [self._key], k_nearest=NUM_CANDIDATES, beam_size=NUM_CANDIDATES, exclude_self=True
        )
        self._found = {peer: self._key.xor_distance(node_id) for node_id, peer in found[self._key].items()}
        self._searched_at = asyncio.get_running_loop().time()
        self._is_search_due = False
