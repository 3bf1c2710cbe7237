"""A client's live view of its holders that also remembers who was ever in trouble: what requests to disks are held
against. Knows nothing of how dispatch decides."""

import asyncio
from collections.abc import Collection
from functools import cached_property

from shoal.client.routing.health import MIN_DEADLINE_S
from shoal.client.routing.holders import Holders
from shoal.protocol.errors import Busy, ShoalError
from shoal.protocol.events import DispatchSent, Event, ReplyReceived
from shoal.protocol.ids import ExpertId, LayerId, PeerId


class WatchedHolders(Holders):
    """`Holders`, unchanged but for its memory."""

    @cached_property
    def troubled(self) -> set[PeerId]:
        """Who failed a request, let its deadline pass, stalled or was lost; to be busy is no trouble."""
        return set()

    @cached_property
    def _unanswered(self) -> dict[tuple[PeerId, LayerId], list[float]]:
        return {}

    def saw(self, event: Event) -> None:
        """Note what was asked and answered."""
        match event:
            case DispatchSent(peer=peer, layer=layer):
                self._unanswered.setdefault((peer, layer), []).append(asyncio.get_running_loop().time())
            case ReplyReceived(peer=peer, layer=layer):
                del self._unanswered[peer, layer][0]
            case _:
                pass

    def failed(self, peer: PeerId, error: ShoalError) -> None:
        if not isinstance(error, Busy):
            self.troubled.add(peer)
        super().failed(peer, error)

    def overtaken(self, peer: PeerId, waited_s: float, macs: int) -> None:
        self.troubled.add(peer)
        super().overtaken(peer, waited_s, macs)

    def is_needless(self, peer: PeerId, layer: LayerId, experts: Collection[ExpertId]) -> bool:
        """Whether this asks for what must be read from disk there, and somebody holds it who was never in trouble."""
        cold = self.holder(peer).cold.get(layer, frozenset()).intersection(experts)
        others = [each for each in self._holders.values() if each.peer != peer and each.is_connected]
        well = [each for each in others if each.peer not in self.troubled and not self._is_overdue(each.peer, layer)]
        return any(not each.experts.get(layer, frozenset()).isdisjoint(cold) for each in well)

    def _is_overdue(self, peer: PeerId, layer: LayerId) -> bool:
        """Whether its deadline may have passed in a race that has not ended, of which nobody was told yet."""
        now = asyncio.get_running_loop().time()
        return any(now - sent_at >= MIN_DEADLINE_S for sent_at in self._unanswered.get((peer, layer), ()))
