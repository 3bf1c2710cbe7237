"""An anchor's experts: all of a model, on disk, with the latest few in memory; the last resort of a swarm.

In the place of `Held.experts`' lookups, on the kernel's thread, where loading and computing take turns: nothing is let
go of while it is used. A call for more experts than fit runs in parts, whose sums are added as a client adds those of
several holders (ADR 0004). What loading took counts as computing, so that admission knows how slow an anchor is.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from shoal.experts.backend import ExpertBackend, PackedExpert
from shoal.node.holdings.assignment import Holding
from shoal.node.serving.batch_rows import Call
from shoal.protocol.errors import CheckpointError, IntegrityError, Malformed, ModelNotFound, PeerFailed
from shoal.protocol.ids import ExpertId, LayerId
from shoal.protocol.messages import Rounding

LoadExpert = Callable[[LayerId, ExpertId], PackedExpert]
"""Reads, verifies and packs one expert. Blocking. Raises CheckpointError, IntegrityError, ModelNotFound, OSError."""


class LatestExperts:
    """The experts that were asked for last. Used by one thread.

    Limits: `capacity` experts; the one that was not asked for the longest goes first.
    """

    def __init__(self, load: LoadExpert, capacity: int) -> None:
        """capacity: experts that fit in memory, at least 1."""
        self._load = load
        self.capacity = capacity
        self._latest: OrderedDict[tuple[LayerId, ExpertId], PackedExpert] = OrderedDict()

    def __len__(self) -> int:
        return len(self._latest)

    def get(self, layer: LayerId, expert: ExpertId) -> PackedExpert:
        """From memory, or from disk.

        Raises:
            PeerFailed: its weights can not be read, or are not what the manifest says.
        """
        packed = self._latest.pop((layer, expert), None)
        if packed is None:
            while len(self._latest) >= self.capacity:
                self._latest.popitem(last=False)
            try:
                packed = self._load(layer, expert)
            except (CheckpointError, IntegrityError, ModelNotFound, OSError) as error:
                raise PeerFailed(f"expert {expert} of layer {layer} can not be read from disk") from error
        self._latest[layer, expert] = packed
        return packed


@dataclass(frozen=True, slots=True)
class Anchor:
    """What makes a node an anchor. offered: what it announces and can read from disk."""

    offered: Holding
    latest: LatestExperts

    def sample(self) -> dict[LayerId, dict[ExpertId, PackedExpert]]:
        """One expert from disk, for the check before anything is announced. Blocking.

        Raises:
            PeerFailed: as `LatestExperts.get`.
        """
        layer, experts = next((layer, experts) for layer, experts in self.offered.items() if experts)
        return {layer: {experts[0]: self.latest.get(layer, experts[0])}}


def compute_in_parts(backend: ExpertBackend, latest: LatestExperts, call: Call) -> torch.Tensor:
    """The weighted sums f32[T, H] of a call, no more experts in memory than fit.

    Raises:
        Malformed: no experts. Else as `LatestExperts.get` and `ExpertBackend.run`.
    """
    layer, rows = LayerId(call.layer), call.rows
    total: torch.Tensor | None = None
    for first, last in _parts(len(call.experts), latest.capacity):
        experts = [latest.get(layer, ExpertId(expert)) for expert in call.experts[first:last]]
        begin, end = rows.offsets[first], rows.offsets[last]
        part = backend.run(
            experts, rows.x, rows.row_idx[begin:end], [at - begin for at in rows.offsets[first : last + 1]],
            rows.topk_weights[begin:end], Rounding(call.rounding),
        )  # fmt: skip
        total = part if total is None else total + part
    if total is None:
        raise Malformed("a call without experts")
    return total


def _parts(num_experts: int, capacity: int) -> Iterator[tuple[int, int]]:
    for first in range(0, num_experts, capacity):
        yield first, min(first + capacity, num_experts)
